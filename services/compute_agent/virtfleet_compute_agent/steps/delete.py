"""Delete: the guest, its definition and its files go; then its claims, and the record says deleted."""

from datetime import UTC, datetime

from virtfleet_common import moves
from virtfleet_common.events import settled
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import Done
from virtfleet_common.states import PowerState, VmState

from virtfleet_compute_agent.steps.context import HostContext


async def delete(host: HostContext, run: StepRun) -> Done:
    """Remove every trace of the guest from this host. What is gone already is fine."""
    await remove(host, run.instance.id)
    turn = moves.deleted(run.instance, datetime.now(UTC), is_cleaned=True)
    return Done({**settled(VmState.DELETED, PowerState.NOSTATE), **turn.set}, turn.effects)


async def remove(host: HostContext, instance_id: str) -> None:
    """Destroy the guest, forget its definition, delete its files; each only if it is there."""
    await host.hypervisor.destroy(instance_id)
    await host.hypervisor.undefine(instance_id)
    reach("delete.middle")
    await host.hypervisor.remove_aside(instance_id)
    await host.hypervisor.close_export(instance_id, adopt=False)
    await host.hypervisor.delete_files(instance_id)
