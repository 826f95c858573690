"""Reboot: the guest restarts itself (soft), or is taken down and made anew from its record (hard)."""

import time

from virtfleet_common.errors import HypervisorFault
from virtfleet_common.events import settled
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import Done
from virtfleet_common.ports import Guest
from virtfleet_common.states import PowerState, TaskState, VmState

from virtfleet_compute_agent.steps.context import OFF, HostContext, is_made_by, is_running, power_state, start_guest
from virtfleet_compute_agent.steps.volumes import without_lost_volumes


async def hard(host: HostContext, run: StepRun) -> Done:
    """Destroy and start again. A guest that this action has made already, and that runs, is left alone."""
    guest = await host.hypervisor.observe(run.instance.id)
    if not run.has_reached(TaskState.REBOOT_STARTED_HARD):
        await run.advance(TaskState.REBOOT_STARTED_HARD)
    return await _made_anew(host, run, guest)


async def soft(host: HostContext, run: StepRun) -> Done:
    """Ask the guest to shut down and start it again; after `soft_reboot_timeout`, or when libvirt fails, go on hard."""
    guest = await host.hypervisor.observe(run.instance.id)
    if is_made_by(guest, run.action.id) and run.is_resumed:
        return _rebooted(run, guest)  # the fall-back had done it
    if not run.has_reached(TaskState.REBOOT_STARTED):
        await run.advance(TaskState.REBOOT_STARTED, domain_id=guest.domain_id if guest else None)
    reason = await _why_not_softly(host, run, guest)
    if reason is None:
        return _rebooted(run, await host.hypervisor.observe(run.instance.id))
    await run.tell("soft_reboot_fell_back", reason)
    return await _made_anew(host, run, guest)


async def _why_not_softly(host: HostContext, run: StepRun, guest: Guest | None) -> str | None:
    """None: the guest has restarted. Otherwise the reason why it must be done hard."""
    if guest is None:
        return "the hypervisor has no such guest"
    try:
        return await _restart_softly(host, run, guest)
    except HypervisorFault as error:
        return error.message


async def _restart_softly(host: HostContext, run: StepRun, guest: Guest) -> str | None:
    hypervisor, settings, id_ = host.hypervisor, host.settings, run.instance.id
    before = run.action.notes.get("domain_id")
    deadline = time.monotonic() + settings.soft_reboot_timeout
    seen: Guest | None = guest
    while seen is not None and seen.power_state not in OFF:
        if seen.domain_id != before:
            return None  # somebody has restarted it
        left = deadline - time.monotonic()
        if left <= 0:
            return f"the guest did not shut down within {settings.soft_reboot_timeout:g} s"
        await hypervisor.request_shutdown(id_)
        reach("reboot_soft.middle")
        seen = await hypervisor.wait_for_power_state(id_, OFF, min(settings.soft_reboot_retry, left))
    await start_guest(host, run)
    return None


async def _made_anew(host: HostContext, run: StepRun, guest: Guest | None) -> Done:
    hypervisor, id_ = host.hypervisor, run.instance.id
    if is_made_by(guest, run.action.id):
        return _rebooted(run, guest)
    instance = await without_lost_volumes(host, run)
    await hypervisor.destroy(id_)
    await hypervisor.undefine(id_)
    await hypervisor.create_disk(instance)
    await hypervisor.define(instance)
    reach(f"{run.spec.name}.middle")
    await start_guest(host, run)
    return _rebooted(run, await hypervisor.observe(id_))


def _rebooted(run: StepRun, guest: Guest | None) -> Done:
    if not is_running(guest):
        raise HypervisorFault("the guest was started and does not run", operation="reboot")
    return Done(settled(_state_after(run), power_state(guest) or PowerState.RUNNING))


def _state_after(run: StepRun) -> VmState:
    """Active, but for a rescued guest, which stays so, and for one whose move its owner has not decided on yet."""
    if run.instance.move is not None:
        return VmState.RESIZED
    return VmState.RESCUED if run.action.original_vm_state is VmState.RESCUED else VmState.ACTIVE
