"""What admins do to hosts: force one down, let it return, attest that it is off, remove it. What is refused changes
nothing."""

from datetime import UTC, datetime

from virtfleet_common.errors import BadRequest, Conflict, NotFound
from virtfleet_common.moves import RANKS
from virtfleet_common.records import EVACUATION, Cleanup, FenceProof, Host
from virtfleet_common.states import HostState
from virtfleet_common.store import MigrationQuery, Store
from virtfleet_common.store.hosts import as_lost

_ENDED = frozenset({"confirmed", "reverted", "completed", "done", "error"})
_TRIES = 20


async def force_down(store: Store, host: Host, now: datetime) -> None:
    """The host is lost at once. One that was lost before, and is proven to be off, stays so."""
    forced = {"is_forced_down": True}
    if host.fence is not None:
        still = {"state": HostState.DOWN, "lost_at": host.lost_at}
        if await store.hosts.set_fields(host.id, forced, was=still):
            return
    await store.hosts.set_fields(host.id, {**forced, **as_lost(now)})


async def let_return(store: Store, host: Host) -> None:
    """The host comes back when its agent has put it in order. Raises BadRequest while what was evacuated from it is not
    settled there."""
    if host.is_forced_down and (count := await _count_unsettled(store, host)):
        raise BadRequest(
            f"Unable to force up host {host.id}: {count} evacuations from it are not completed.",
            rule="service.evacuations",
            hint="Start its agent and wait until it has cleaned up what they left there; then try again.",
        )
    await store.hosts.set_fields(host.id, {"is_forced_down": False})


async def attest(store: Store, name: str, by: str, reason: str) -> Host:
    """An admin knows that a lost host is off. Raises NotFound, or Conflict if it is not down."""
    for _ in range(_TRIES):
        host = await store.hosts.get_brief(name)
        if host is None:
            raise NotFound(f"Compute host {name} could not be found.", rule="host_exists")
        if host.state is not HostState.DOWN:
            raise Conflict(f"Host {name} is {host.state}, not down.", rule="host_down", hint="Force it down first.")
        proof = FenceProof(proof="attested", at=datetime.now(UTC), detail=f"{by}: {reason}")
        fields = {"fence": proof.model_dump()}
        was = {"state": HostState.DOWN, "lost_at": host.lost_at, "fence": None}
        if host.fence is not None or await store.hosts.set_fields(name, fields, was=was):
            return host if host.fence is not None else host.model_copy(update={"fence": proof})
    raise Conflict(f"Host {name} changes too fast to attest anything of it.", rule="one_writer")


async def remove(store: Store, host: Host) -> None:
    """The host is no part of the fleet any more. Raises Conflict while it holds or owes something.

    What a host that is forced down owes is written off: such a host need not ever come back.
    """
    if await store.instances.find_on_host(host.id):
        why = "Unable to delete compute service that is hosting instances. Migrate or delete the instances first."
        raise Conflict(why, rule="service.instances")
    if await _is_in_a_move(store, host):
        why = "Unable to delete compute service that has in-progress migrations. Complete the migrations first."
        raise Conflict(why, rule="service.migrations")
    owed = await store.cleanups.find(host.id)
    if owed and not host.is_forced_down:
        why = f"Unable to delete compute service that has {len(owed)} leftovers of moves to clean up."
        raise Conflict(why, rule="service.cleanups", hint="Wait for its agent, or force the host down: they are lost.")
    empty = {"is_forced_down": True} if host.is_forced_down else {"is_forced_down": False, "placed": 0}
    if not await store.hosts.remove(host.id, was=empty):
        raise Conflict(f"Host {host.id} changed just now; try again.", rule="one_writer")
    await _forget(store, host, owed)


async def _count_unsettled(store: Store, host: Host) -> int:
    under_way = {instance.move.id for instance in await store.instances.find_evacuating(host.id) if instance.move}
    done = await store.migrations.find({"source": host.id, "type": EVACUATION, "status": "done"})
    return len(under_way | {migration.id for migration in done})


async def _is_in_a_move(store: Store, host: Host) -> bool:
    for status in sorted(RANKS.keys() - _ENDED):
        if await store.migrations.find_page(MigrationQuery(host=host.id, status=status, limit=1)):
            return True
    return False


async def _forget(store: Store, host: Host, owed: list[Cleanup]) -> None:
    for aggregate in await store.aggregates.find():
        if host.id in aggregate.hosts:
            await store.aggregates.remove_host(aggregate.id, host.id)
    for cleanup in owed:
        await store.cleanups.remove(cleanup.id)
    for migration in await store.migrations.find({"source": host.id, "type": EVACUATION, "status": "done"}):
        fields = {"status": "completed", "updated_at": datetime.now(UTC)}
        await store.migrations.put(migration.id, fields, RANKS["completed"])
