"""Resize and cold migrate: the destination prepares, the source sends its disk and lets go, the destination takes over.

Until the switch (host, epoch, claim and flavor in one write at the end of `move`) the source owns the instance and can
put everything back; from then on the destination does, and the source keeps its disk until the owner has decided.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

import structlog
from virtfleet_common import moves
from virtfleet_common.errors import Faulty, HypervisorFault, LostOwnership
from virtfleet_common.events import lifecycle, settled
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import Done, HandOver, NotCleaned
from virtfleet_common.ports import Export
from virtfleet_common.records import Instance, Move
from virtfleet_common.states import PowerState, VmState

from virtfleet_compute_agent.steps.context import (
    HostContext,
    is_made_by,
    is_running,
    open_move,
    power_state,
    start_guest,
)
from virtfleet_compute_agent.steps.delete import remove
from virtfleet_compute_agent.steps.power import shut_down
from virtfleet_compute_agent.steps.volumes import check_reachable

log = structlog.get_logger()
_PROGRESS_STEP = 10


async def prepare(host: HostContext, run: StepRun) -> HandOver:
    """Destination: look whether the guest can live here, and open a door for its disk. It does not stay open for a
    step that fails, or that was taken away."""
    instance, move = run.instance, open_move(run)
    async with AsyncExitStack() as unless_open:
        unless_open.push_async_callback(_close_door, host, instance.id, move)
        export = await _door(host, instance, move)
        unless_open.pop_all()
    told = lifecycle(instance, run.action.name, "prep", after={}, request_id=run.action.id)
    notes, undo = {"export": asdict(export)}, partial(_close_unless_wanted, host, instance.id, move)
    return HandOver("move", move.source, {}, notes, [told], undo)


async def _door(host: HostContext, instance: Instance, move: Move) -> Export:
    await host.clean(instance.id)
    if await host.hypervisor.observe(instance.id) is not None:
        raise NotCleaned("a guest of this id is here already", host=move.destination)
    missing = await host.hypervisor.missing_networks(instance)
    if missing:
        raise HypervisorFault(f"this host has no network {', '.join(missing)}", operation="prepare", code="no_network")
    await check_reachable(host, instance)
    reach("prepare.middle")
    await host.hypervisor.probe_shared(move.transfer)
    return await host.hypervisor.open_export(instance, move.transfer)


async def _close_unless_wanted(host: HostContext, instance_id: str, move: Move) -> None:
    """The last write was refused: if that is not because it had been made already, nobody will come."""
    now = await host.read(instance_id)
    if now is None or now.move is None or now.move.transfer != move.transfer:
        await _close_door(host, instance_id, move)


async def _close_door(host: HostContext, instance_id: str, move: Move) -> None:
    try:
        await host.hypervisor.remove_probe(move.transfer)
        await host.hypervisor.close_export(instance_id, adopt=False, token=move.transfer)
    except Faulty as error:  # what made it necessary to close it is what people have to know
        log.warning("door.not_closed", instance_id=instance_id, error=error.message)


async def send(host: HostContext, run: StepRun) -> HandOver:
    """Source: stop the guest, send the disk, let go. What fails is put back, and the guest runs again if it ran."""
    move = open_move(run)
    try:
        sent = await _sent(host, run, move)
    except LostOwnership:
        raise
    except Exception as error:
        await _put_back(host, run, error)
        raise
    turn = moves.switched(run.instance, move, datetime.now(UTC), is_shared=sent is None)
    return HandOver("finish", move.destination, turn.set, {"disk_bytes": sent or 0}, turn.effects)


async def _sent(host: HostContext, run: StepRun, move: Move) -> int | None:
    """Stop the guest and send its disk: the disk's bytes, or None if both hosts see the same disk."""
    hypervisor, id_ = host.hypervisor, run.instance.id
    await run.commit(effects=[moves.status(move, "migrating", datetime.now(UTC))])
    if is_running(await hypervisor.observe(id_)):
        await shut_down(host, id_)
    await hypervisor.destroy(id_)
    reach("move.middle")
    await hypervisor.undefine(id_)
    if await hypervisor.sees_probe(move.transfer):
        return None
    await hypervisor.set_aside(id_)
    return await hypervisor.send_disk(run.instance, Export(**run.action.notes["export"]), _progress(run))


def _progress(run: StepRun) -> Callable[[int], Awaitable[None]]:
    async def note(percent: int) -> None:
        if percent >= run.instance.progress + _PROGRESS_STEP:
            await run.commit(set={"progress": percent}, action={"sent_at": run.action.sent_at})

    return note


async def _put_back(host: HostContext, run: StepRun, error: Exception) -> None:
    try:
        await restore(host, run)
    except Exception as left:
        raise NotCleaned(f"{error}; and the guest could not be put back: {left}") from error


async def restore(host: HostContext, run: StepRun) -> PowerState:
    """The guest as it was before the move: its disk in its place, defined, running if it ran."""
    hypervisor, instance = host.hypervisor, run.instance
    await hypervisor.put_back(instance.id)
    if not is_running(await hypervisor.observe(instance.id)):
        await hypervisor.create_disk(instance)
        await hypervisor.define(instance)
        if open_move(run).old_vm_state is VmState.ACTIVE:
            await start_guest(host, run)
    return power_state(await hypervisor.observe(instance.id))


async def finish(host: HostContext, run: StepRun) -> Done:
    """Destination: the disk that came becomes the guest's, grown to the new flavor; one more try if that fails."""
    try:
        power = await _taken_over(host, run)
    except LostOwnership:
        raise
    except Faulty:
        power = await _taken_over(host, run)
    turn = moves.finished(open_move(run), datetime.now(UTC), host.settings.resize_confirm_window)
    launched = {"launched_at": datetime.now(UTC), **turn.set}
    return Done(settled(VmState.RESIZED, power, **launched), turn.effects)


async def _taken_over(host: HostContext, run: StepRun) -> PowerState:
    hypervisor, instance, move = host.hypervisor, run.instance, open_move(run)
    guest = await hypervisor.observe(instance.id)
    if not is_made_by(guest, run.action.id):
        await hypervisor.remove_probe(move.transfer)
        size = run.action.notes.get("disk_bytes", 0)
        await hypervisor.close_export(instance.id, adopt=not move.is_shared, size_bytes=size)
        await hypervisor.create_disk(instance)
        await hypervisor.grow_disk(instance)
        await hypervisor.define(instance)
        reach("finish.middle")
        if move.old_vm_state is VmState.ACTIVE:
            await start_guest(host, run)
        guest = await hypervisor.observe(instance.id)
    return power_state(guest)


async def revert(host: HostContext, run: StepRun) -> HandOver:
    """Destination: its guest and its disk go, and the instance is the source's again."""
    move = open_move(run)
    if move.is_shared:
        await host.hypervisor.destroy(run.instance.id)
        await host.hypervisor.undefine(run.instance.id)
    else:
        await remove(host, run.instance.id)
    reach("revert.middle")
    turn = moves.handed_back(run.instance, move)
    return HandOver("finish_revert", move.source, turn.set, effects=turn.effects)


async def finish_revert(host: HostContext, run: StepRun) -> Done:
    """Source: the guest as it was before the move."""
    move = open_move(run)
    reach("finish_revert.middle")
    power = await restore(host, run)
    turn = moves.reverted(run.instance, move, datetime.now(UTC))
    return Done(settled(move.old_vm_state, power, **turn.set), turn.effects)
