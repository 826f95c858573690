"""A person is the fence: an admin who forces the host down says that it is off."""

from virtfleet_common.errors import FenceFault
from virtfleet_common.ports import Fence
from virtfleet_common.records import Host
from virtfleet_common.settings import PowerSyncSettings


class Attestation(Fence):
    """See the module's text."""

    name = "attested"
    is_drastic = False

    def __init__(self, settings: PowerSyncSettings) -> None:
        """Nothing to keep."""

    async def prove(self, host: Host) -> str:
        """Raises FenceFault until an admin forces the host down; one who attests needs nobody else's proof."""
        if host.is_forced_down:
            return "an admin forced it down"
        raise FenceFault(f"host {host.id} waits for an admin who knows that it is off: attest it, or force it down")
