"""Volumes: attached, detached, brought along to another host; and those whose source is gone, without which the guest
goes on."""

from datetime import UTC, datetime

from virtfleet_common import volumes
from virtfleet_common.errors import HypervisorFault, LostOwnership
from virtfleet_common.events import lifecycle, settled
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import Done
from virtfleet_common.records import Instance
from virtfleet_common.states import TaskState
from virtfleet_common.volumes import Device

from virtfleet_compute_agent.steps.context import HostContext


async def attach(host: HostContext, run: StepRun) -> Done:
    """Have the volume in the guest and its definition. What fails is taken out again, so that another may have it."""
    device = run.action.step.args["device"]
    if volumes.TAKEN_OUT in run.action.notes:  # by an agent that died before it could say so
        raise HypervisorFault(run.action.notes[volumes.TAKEN_OUT], operation="attach")
    try:
        await check_reachable(host, run.instance, [device])
        reach("attach_volume.middle")
        await host.hypervisor.plug_in(run.instance.id, device)
    except LostOwnership:
        raise
    except Exception as error:
        await _take_out(host, run, device, error)
        raise
    fields, effects = volumes.attached(run.instance, device, datetime.now(UTC))
    return Done(settled(run.instance.vm_state, run.instance.power_state, **fields), effects)


async def detach(host: HostContext, run: StepRun) -> Done:
    """Have the volume out of the guest and its definition; then others may have it. A guest that does not let go keeps
    it."""
    device = run.action.step.args["device"]
    await host.hypervisor.unplug(run.instance.id, device)
    reach("detach_volume.middle")
    fields, effects = volumes.detached(run.instance, device)
    return Done(settled(run.instance.vm_state, run.instance.power_state, **fields), effects)


async def _take_out(host: HostContext, run: StepRun, device: Device, error: Exception) -> None:
    """Unless it can be taken out, and said to be, the guest may have the volume: see `volumes.given_up`."""
    try:
        await host.hypervisor.unplug(run.instance.id, device)
    except HypervisorFault as left:
        raise HypervisorFault(f"{error}; it could not be taken out again: {left}", operation="attach") from error
    await run.advance(TaskState.BLOCK_DEVICE_MAPPING, **{volumes.TAKEN_OUT: str(error)})


async def check_reachable(host: HostContext, instance: Instance, devices: list[Device] | None = None) -> None:
    """Raises HypervisorFault `no_volume` if the file or device of a volume (None: of any that the instance has) surely
    is not on this host. What lies behind the network is found out when the guest starts."""
    wanted = volumes.present(instance) if devices is None else devices
    missing = await host.hypervisor.lost_volumes(instance.model_copy(update={"block_devices": wanted}))
    if missing:
        message = f"this host has no volume at {', '.join(missing)}"
        raise HypervisorFault(message, operation="volumes", code="no_volume")


async def reattach(host: HostContext, run: StepRun) -> Instance:
    """The instance has come here from a host that is lost: so have its volumes.

    In the collection they are detached from that host and attached to the instance's, in one write each, which may be
    done twice. Raises HypervisorFault `no_volume` if one is not here, and has then changed nothing; LostOwnership.
    """
    await check_reachable(host, run.instance)
    moved = volumes.moved(run.instance, run.instance.host)
    if moved:
        await run.commit(effects=moved)
    return run.instance


async def without_lost_volumes(host: HostContext, run: StepRun) -> Instance:
    """The instance less the block devices whose source is gone; the record marks them detached (`volume.lost`), and
    they are attached to nothing any more."""
    paths = set(await host.hypervisor.lost_volumes(run.instance))
    lost = [device for device in volumes.present(run.instance) if device.get("path") in paths]
    if lost:
        devices = [{**one, "detached": "lost"} if one in lost else one for one in run.instance.block_devices]
        told = lifecycle(run.instance, "volume", "lost", after={"block_devices": devices}, request_id=run.action.id)
        await run.commit(set={"block_devices": devices}, effects=[told, *volumes.released(lost)])
    return run.instance
