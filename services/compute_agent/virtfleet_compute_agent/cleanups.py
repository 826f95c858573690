"""What this host owes: the leftovers of moves, removed when they are announced, at start, and now and then.

Only leftovers go: a guest that the record places on this host is never touched, nor one that is newer than the record;
nor are files that a host which has to do with the instance by now may see too.
"""

import asyncio
from datetime import UTC, datetime

import structlog
from virtfleet_common.bus import COMMANDS, QueueSpec
from virtfleet_common.errors import Faulty
from virtfleet_common.failpoints import reach
from virtfleet_common.moves import RANKS
from virtfleet_common.ports import Hypervisor
from virtfleet_common.records import Cleanup, Instance
from virtfleet_common.states import VmState
from virtfleet_common.store import Store

from virtfleet_compute_agent.storage import Storage

log = structlog.get_logger()


class UnknownGuest(Faulty):
    """The record is older than the guest: somebody has to look, as with every guest that the record does not know."""

    code = "unknown_guest"


def queue(host: str) -> QueueSpec:
    """The wake-ups of one host. One that is lost does no harm: the host looks by itself too."""
    return QueueSpec(f"virtfleet.cleanup.{host}", [(COMMANDS, f"cleanup.{host}")], prefetch=1, max_length=100)


class Cleaner:
    """Does what one host owes."""

    def __init__(self, host: str, store: Store, hypervisor: Hypervisor, storage: Storage) -> None:
        self._host = host
        self._store = store
        self._hypervisor = hypervisor
        self._storage = storage
        self._one_at_a_time = asyncio.Lock()

    async def clean_all(self) -> None:
        """Do all that is owed, but for an instance in whose next move this host takes part: what lies here may be of
        that move by now. What fails is tried again next time."""
        for owed in await self._store.cleanups.find(self._host):
            try:
                await self._clean(owed, is_preparing=False)
            except Faulty as error:
                log.warning("cleanup.failed", instance_id=owed.instance_id, error=error.message)

    async def clean(self, instance_id: str) -> None:
        """Do what is owed for one instance, before it comes here again. Raises Faulty: whoever asks needs it done."""
        for owed in await self._store.cleanups.find(self._host):
            if owed.instance_id == instance_id:
                await self._clean(owed, is_preparing=True)

    async def _clean(self, listed: Cleanup, *, is_preparing: bool) -> None:
        """One clean-up, if it is still owed: a list may be old, and the guest may have come back since."""
        async with self._one_at_a_time:
            owed = await self._store.cleanups.get(listed.id)
            if owed is not None:
                await self._do(owed, is_preparing)

    async def _do(self, owed: Cleanup, is_preparing: bool) -> None:
        reach("cleanup.before")
        instance = await self._store.instances.get(owed.instance_id)
        if instance is not None and not is_preparing and self._is_in_another_move(owed, instance):
            return
        await self._remove(owed, instance)
        reach("cleanup.middle")
        if owed.claim is not None:
            await self._store.hosts.release(owed.instance_id, owed.claim)
        await self._complete(owed)
        await self._store.cleanups.remove(owed.id)
        log.info("cleanup.done", instance_id=owed.instance_id, host=self._host)

    def _is_in_another_move(self, owed: Cleanup, instance: Instance) -> bool:
        """Whether this host is an end of an open move that is not the one which left something here."""
        move = instance.move
        return move is not None and move.id != owed.migration_id and self._host in {move.source, move.destination}

    async def _complete(self, owed: Cleanup) -> None:
        """An evacuation is completed when the host that was lost is clean again."""
        if owed.is_completing and owed.migration_id is not None:
            fields = {"status": "completed", "updated_at": datetime.now(UTC)}
            await self._store.migrations.put(owed.migration_id, fields, RANKS["completed"])

    async def _remove(self, owed: Cleanup, instance: Instance | None) -> None:
        hypervisor, id_ = self._hypervisor, owed.instance_id
        await hypervisor.close_export(id_, adopt=False, token=owed.transfer)
        if owed.transfer is not None:
            await hypervisor.remove_probe(owed.transfer)
        lives_here = instance is not None and instance.host == self._host and instance.vm_state is not VmState.DELETED
        if lives_here:
            return
        guest = await hypervisor.observe(id_)
        if instance is not None and guest is not None and guest.epoch > instance.epoch:
            raise UnknownGuest(f"the guest here is of epoch {guest.epoch}, and the record of epoch {instance.epoch}")
        await hypervisor.destroy(id_)
        await hypervisor.undefine(id_)
        if not await self._is_shared(owed, instance):
            await hypervisor.remove_aside(id_)
            await hypervisor.delete_files(id_)

    async def _is_shared(self, owed: Cleanup, instance: Instance | None) -> bool:
        """Whether what lies here is another host's too, or may be, for all that this host can see.

        That the two hosts of a move did not share says nothing of where the instance has gone since.
        """
        if owed.is_shared:
            return True
        if instance is None or instance.vm_state is VmState.DELETED:
            return False
        ends = {instance.move.source, instance.move.destination} - {None} if instance.move is not None else set()
        others = {instance.host, *ends} - {self._host}
        return any([await self._storage.is_shared_with(host) is not False for host in others])
