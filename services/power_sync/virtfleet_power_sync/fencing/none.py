"""No fence: the host's silence is the proof.

It is one where agents isolate themselves in time (`isolation_policy` stop), or where two copies of a guest do no harm:
what the lost host still runs owns the instance no more (its epoch is older), and goes when the host returns.
"""

from virtfleet_common.ports import Fence
from virtfleet_common.records import Host
from virtfleet_common.settings import PowerSyncSettings


class Silence(Fence):
    """See the module's text."""

    name = "silence"
    is_drastic = False

    def __init__(self, settings: PowerSyncSettings) -> None:
        """Nothing to keep."""

    async def prove(self, host: Host) -> str:
        """The host was declared lost: that is all."""
        if host.is_forced_down:
            return "an admin forced it down"
        return f"not heard since {host.last_seen:%Y-%m-%d %H:%M:%S} UTC" if host.last_seen else "never heard"
