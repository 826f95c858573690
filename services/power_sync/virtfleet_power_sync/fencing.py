"""Fencing."""

from collections.abc import Sequence

from virtfleet_common.ports import Clock
from virtfleet_common.records import Fence, Host
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Store


class Fencer:
    """Has every lost host fenced."""

    def __init__(self, store: Store, clock: Clock, settings: PowerSyncSettings) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings

    async def check(self, hosts: Sequence[Host]) -> list[Host]:
        """Begin what is to be fenced; returns the hosts, with the proofs there are now."""
        return [await self._fenced(host) for host in hosts]

    async def _fenced(self, host: Host) -> Host:
        if host.state is not HostState.DOWN or host.fence is not None:
            return host
        fields = {"fence": Fence(proof="silence", at=self._clock.now()).model_dump()}
        if await self._store.hosts.set_fields(host.id, fields, was={"state": HostState.DOWN, "lost_at": host.lost_at}):
            return host.model_copy(update={"fence": Fence.model_validate(fields["fence"])})
        return host
