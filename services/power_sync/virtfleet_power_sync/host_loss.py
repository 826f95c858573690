"""What follows when hosts are lost: they are declared down, fenced, their work ends, their guests go elsewhere."""

from virtfleet_power_sync.evacuation import Evacuator
from virtfleet_power_sync.fencing.fencer import Fencer
from virtfleet_power_sync.liveness import Liveness
from virtfleet_power_sync.lost_work import LostWork


class HostLoss:
    """One round after the other over all hosts. Nothing in a round waits for a fence or for a guest."""

    def __init__(self, liveness: Liveness, fencer: Fencer, lost_work: LostWork, evacuator: Evacuator) -> None:
        self._liveness = liveness
        self._fencer = fencer
        self._lost_work = lost_work
        self._evacuator = evacuator

    async def check(self) -> None:
        """One round."""
        hosts = await self._liveness.check()
        await self._fencer.check(hosts)
        await self._lost_work.end(hosts)
        await self._evacuator.check(hosts)
