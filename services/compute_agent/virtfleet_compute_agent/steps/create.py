"""Create: networking -> block_device_mapping -> spawning -> active."""

from datetime import UTC, datetime

from virtfleet_common.errors import LostOwnership
from virtfleet_common.events import settled
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import Done, NotCleaned
from virtfleet_common.states import PowerState, TaskState, VmState

from virtfleet_compute_agent.steps.context import HostContext, is_made_by, power_state, start_guest
from virtfleet_compute_agent.steps.delete import remove


async def create(host: HostContext, run: StepRun) -> Done:
    """Make the guest from its record. What fails is taken away again, so that another host can be tried."""
    try:
        power = await _spawned(host, run)
    except LostOwnership:
        raise  # deleted meanwhile: the delete cleans up
    except Exception as error:
        await _take_away(host, run, error)
        raise
    return Done(settled(VmState.ACTIVE, power, launched_at=datetime.now(UTC)))


async def _spawned(host: HostContext, run: StepRun) -> PowerState:
    hypervisor, id_ = host.hypervisor, run.instance.id
    guest = await hypervisor.observe(id_)
    if not is_made_by(guest, run.action.id):
        await run.advance(TaskState.BLOCK_DEVICE_MAPPING)
        await hypervisor.create_disk(run.instance)
        await run.advance(TaskState.SPAWNING)
        await hypervisor.define(run.instance)
        reach("create.middle")
        await start_guest(host, run)
        guest = await hypervisor.observe(id_)
    return power_state(guest)


async def _take_away(host: HostContext, run: StepRun, error: Exception) -> None:
    try:
        await remove(host, run.instance.id)
    except Exception as left:
        raise NotCleaned(f"{error}; and what was begun could not be taken away: {left}") from error
