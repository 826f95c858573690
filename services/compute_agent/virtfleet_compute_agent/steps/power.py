"""Start, stop, pause, unpause, suspend, resume."""

import time

from virtfleet_common.events import settled
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import Done
from virtfleet_common.states import PowerState, VmState

from virtfleet_compute_agent.steps.context import OFF, HostContext, is_running, power_state, start_guest


async def start(host: HostContext, run: StepRun) -> Done:
    """Start a stopped guest, its definition made anew from the record."""
    hypervisor, id_ = host.hypervisor, run.instance.id
    guest = await hypervisor.observe(id_)
    if not is_running(guest):
        await hypervisor.create_disk(run.instance)
        await hypervisor.define(run.instance)
        reach("start.middle")
        await start_guest(host, run)
        guest = await hypervisor.observe(id_)
    return Done(settled(VmState.ACTIVE, power_state(guest)))


async def stop(host: HostContext, run: StepRun) -> Done:
    """Ask the guest to shut down, again and again up to `shutdown_timeout`; then pull the plug. One in error whose move
    waits for a decision stays so: stopped, it would be out of its owner's reach."""
    hypervisor, id_ = host.hypervisor, run.instance.id
    guest = await hypervisor.observe(id_)
    if is_running(guest):
        await shut_down(host, id_)
        reach("stop.middle")
    await hypervisor.destroy(id_)
    if run.instance.move is not None:
        return Done({"power_state": PowerState.SHUTDOWN})
    return Done(settled(VmState.STOPPED, PowerState.SHUTDOWN))


async def shut_down(host: HostContext, instance_id: str) -> bool:
    """Press the power button every `shutdown_retry` seconds until the guest is off; False if it never obeys."""
    deadline = time.monotonic() + host.settings.shutdown_timeout
    while (left := deadline - time.monotonic()) > 0:
        await host.hypervisor.request_shutdown(instance_id)
        wait = min(host.settings.shutdown_retry, left)
        guest = await host.hypervisor.wait_for_power_state(instance_id, OFF, wait)
        if guest is None or guest.power_state in OFF:
            return True
    return False


async def pause(host: HostContext, run: StepRun) -> Done:
    """Stop the guest's processors."""
    await host.hypervisor.pause(run.instance.id)
    return Done(settled(VmState.PAUSED, PowerState.PAUSED))


async def unpause(host: HostContext, run: StepRun) -> Done:
    """Let the guest's processors go on."""
    await host.hypervisor.unpause(run.instance.id)
    return Done(settled(VmState.ACTIVE, PowerState.RUNNING))


async def suspend(host: HostContext, run: StepRun) -> Done:
    """Write the guest's memory to disk and end its process."""
    guest = await host.hypervisor.observe(run.instance.id)
    if guest is None or not guest.has_managed_save:
        await host.hypervisor.save(run.instance.id)
    return Done(settled(VmState.SUSPENDED, PowerState.SHUTDOWN))


async def resume(host: HostContext, run: StepRun) -> Done:
    """Start the guest from its saved memory; one that was never saved starts afresh."""
    guest = await host.hypervisor.observe(run.instance.id)
    if not is_running(guest):
        await start_guest(host, run)
        guest = await host.hypervisor.observe(run.instance.id)
    return Done(settled(VmState.ACTIVE, power_state(guest)))
