"""Volumes whose source is gone: the guest goes on without them."""

from virtfleet_common.events import lifecycle
from virtfleet_common.executor import StepRun
from virtfleet_common.records import Instance

from virtfleet_compute_agent.steps.context import HostContext


async def without_lost_volumes(host: HostContext, run: StepRun) -> Instance:
    """The instance less the block devices whose source is gone; the record marks them detached (`volume.lost`)."""
    lost = set(await host.hypervisor.lost_volumes(run.instance))
    if lost:
        devices = [
            {**device, "detached": "lost"} if device.get("path") in lost else device
            for device in run.instance.block_devices
        ]
        told = lifecycle(run.instance, "volume", "lost", after={}, request_id=run.action.id)
        await run.commit(set={"block_devices": devices}, effects=[told])
    return run.instance
