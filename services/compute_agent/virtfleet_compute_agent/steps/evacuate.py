"""Evacuate: the host is lost, and this one takes its guest over, in the record first.

Good path: look whether the guest can live here and whether its disk is here too; host, epoch and claim change hands in
one write; only then is anything started. Bad path: what this host had begun goes, the instance is its source's again,
and another host is tried. Why it is safe: from the switch on the lost host is not the owner any more, whatever it
believes; before it, nothing here belongs to the instance.
"""

from datetime import UTC, datetime

from virtfleet_common import moves
from virtfleet_common.errors import Faulty, HypervisorFault, LostOwnership
from virtfleet_common.events import settled
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import Done, NotCleaned
from virtfleet_common.records import Instance, Move
from virtfleet_common.states import PowerState, TaskState, VmState

from virtfleet_compute_agent.steps.context import HostContext, is_made_by, open_move, power_state, start_guest
from virtfleet_compute_agent.steps.delete import remove
from virtfleet_compute_agent.steps.volumes import check_reachable, reattach

_LIVES_ON = {VmState.STOPPED: VmState.STOPPED, VmState.SUSPENDED: VmState.STOPPED, VmState.PAUSED: VmState.PAUSED}
"""What an evacuated guest is afterwards; active, where nothing stands here. The memory of a paused or suspended guest
is lost with its host: the one is booted and paused, the other stays off."""


class InvalidSharedStorage(Faulty):
    """The caller said whether the disk is on shared storage, and it is the other way."""

    code = "invalid_shared_storage"


async def shelter(host: HostContext, run: StepRun) -> Done:
    """Destination: take the instance over, then have its guest."""
    try:
        power = await _sheltered(host, run)
    except LostOwnership:
        raise
    except Exception as error:
        await _take_away(host, run, error)
        raise
    move, now = open_move(run), datetime.now(UTC)
    turn = moves.sheltered(run.instance, move, now)
    vm_state = _LIVES_ON.get(move.old_vm_state, VmState.ACTIVE)
    return Done(settled(vm_state, power, launched_at=now, **turn.set), turn.effects)


async def _sheltered(host: HostContext, run: StepRun) -> PowerState:
    hypervisor, id_ = host.hypervisor, run.instance.id
    if not _is_ours(run):
        await _take_over(host, run, open_move(run))
    if not run.has_reached(TaskState.REBUILD_SPAWNING):
        await reattach(host, run)
        await run.advance(TaskState.REBUILD_SPAWNING)
    guest = await hypervisor.observe(id_)
    if not is_made_by(guest, run.action.id):
        await hypervisor.create_disk(run.instance, is_anew=not open_move(run).is_shared)
        await hypervisor.define(run.instance)
        reach("shelter.spawning")
        await _start(host, run)
        guest = await hypervisor.observe(id_)
    return power_state(guest)


async def _take_over(host: HostContext, run: StepRun, move: Move) -> None:
    """The checks, which leave nothing behind, and the switch."""
    instance = run.instance
    await host.clean(instance.id)
    if await host.hypervisor.observe(instance.id) is not None:
        raise HypervisorFault("a guest of this id is here already", operation="shelter", code="guest_exists")
    missing = await host.hypervisor.missing_networks(instance)
    if missing:
        raise HypervisorFault(f"this host has no network {', '.join(missing)}", operation="shelter", code="no_network")
    await check_reachable(host, instance)
    is_shared = await _shares_storage(host, run, instance, move)
    reach("shelter.middle")
    turn = moves.sheltering(instance, move, is_shared=is_shared)
    await run.commit(
        set={"task_state": TaskState.REBUILD_BLOCK_DEVICE_MAPPING, **turn.set}, action={"sent_at": run.action.sent_at}
    )
    reach("shelter.switched")


async def _shares_storage(host: HostContext, run: StepRun, instance: Instance, move: Move) -> bool:
    """Whether the lost host's disks are here, as its mark shows. Raises where the disk should be here and is not: it
    must not be replaced by a fresh one."""
    has_disk = await host.hypervisor.has_disk(instance)
    found = await host.storage.is_shared_with(move.source)
    is_shared = has_disk if found is None else found  # a host that nobody knows any more has no mark to look for
    said = run.action.notes.get("on_shared_storage")
    if said is not None and said is not is_shared:
        word = "" if is_shared else " not"
        raise InvalidSharedStorage(f"the disk of instance {instance.id} is{word} on storage shared with {move.source}")
    if is_shared and not has_disk:
        raise HypervisorFault("the shared storage has no disk of it", operation="shelter", code="no_disk")
    return is_shared


async def _start(host: HostContext, run: StepRun) -> None:
    match _LIVES_ON.get(open_move(run).old_vm_state, VmState.ACTIVE):
        case VmState.STOPPED:
            return
        case VmState.PAUSED:
            await start_guest(host, run)
            await host.hypervisor.pause(run.instance.id)
        case _:
            await start_guest(host, run)


async def _take_away(host: HostContext, run: StepRun, error: Exception) -> None:
    """What was begun here goes; a disk that is the lost host's too stays."""
    if not _is_ours(run):
        return
    try:
        if open_move(run).is_shared:
            await host.hypervisor.destroy(run.instance.id)
            await host.hypervisor.undefine(run.instance.id)
        else:
            await remove(host, run.instance.id)
    except Exception as left:
        raise NotCleaned(f"{error}; and what was begun could not be taken away: {left}") from error


def _is_ours(run: StepRun) -> bool:
    """Whether the switch has been made."""
    return run.instance.host == open_move(run).destination
