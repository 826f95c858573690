"""When a guest of a lost host may go elsewhere: no lost host that may still run it is without a proof."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from virtfleet_common.executor import StepExecutor, StepRun
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.outcomes import HandOver
from virtfleet_common.records import EVACUATION, ActionState, Cleanup, FenceProof, Move, Resources
from virtfleet_common.relay import Relay
from virtfleet_common.settings import SchedulerSettings
from virtfleet_common.states import TaskState, VmState
from virtfleet_common.steps import STEPS, make_step
from virtfleet_common.store.hosts import as_lost
from virtfleet_common.store.memory import MemoryStore
from virtfleet_scheduler.placement import Placement
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.steps import NotFenced, Selecting, SourceIsBack
from virtfleet_scheduler.view import HostView

from tests.unit.records import NOW, an_instance

SOURCE, BEFORE, ROOMY = "host-1", "host-2", "host-3"
ROOM = Resources(vcpus=16, ram_mb=16384, disk_gb=100)
PROOF = {"fence": FenceProof(proof="attested", at=NOW).model_dump()}


async def a_fleet(*, lost: Sequence[str], fenced: Sequence[str]) -> MemoryStore:
    """Three hosts, of which the second has yet to clean up after the guest, that was evacuated to it in vain."""
    store = MemoryStore()
    for host in (SOURCE, BEFORE, ROOMY):
        await store.hosts.register(host, uuid=host, limits=ROOM, facts={"boot_id": "boot"})
    for host in lost:
        await store.hosts.set_fields(host, as_lost(NOW) | (PROOF if host in fenced else {}))
    await store.hosts.set_fields(BEFORE, {"is_enabled": False})
    await store.cleanups.add(Cleanup(id=f"m-0:{BEFORE}", host=BEFORE, instance_id="i-1", created_at=NOW))
    await store.cleanups.add(Cleanup(id=f"m-9:{ROOMY}", host=ROOMY, instance_id="i-9", created_at=NOW))
    return store


async def sheltered(store: MemoryStore) -> HandOver:
    """What becomes of the step that looks for a shelter, and waits for no proof."""
    settings = SchedulerSettings(placement_seed=1)
    executor = StepExecutor(
        name="scheduler", boot="b", host=None, store=store, relay=Relay(store, MemoryBus(), "virtfleet/test"),
        settings=settings, handlers={},
    )  # fmt: skip
    action = ActionState(
        id="req-1", name="evacuate", trace_id="0" * 32, user_id="u", project_id="p",
        step=make_step("select_shelter", None), started_at=NOW, expires_at=NOW + timedelta(hours=1),
        original_vm_state=VmState.ACTIVE, progressed_at=NOW,
    )  # fmt: skip
    move = Move(id="m-1", type=EVACUATION, source=SOURCE, source_claim="c-1", old_vm_state=VmState.ACTIVE)
    instance = an_instance(host=SOURCE, task_state=TaskState.REBUILDING, action=action, move=move)
    view = HostView(store, settings)
    await view.reload()
    selecting = Selecting(Placement(store, view, Rules.of(settings), settings), store, fence_timeout=0)
    outcome = await selecting.select_shelter(StepRun(executor, instance, action, STEPS["select_shelter"]))
    assert isinstance(outcome, HandOver)
    return outcome


@pytest.mark.parametrize(
    ("lost", "fenced"),
    [([SOURCE], [SOURCE]), ([SOURCE, BEFORE], [SOURCE, BEFORE])],
    ids=["the other is not lost", "both are off"],
)
async def test_a_guest_goes_elsewhere_when_every_lost_host_that_may_run_it_is_off(
    lost: Sequence[str], fenced: Sequence[str]
) -> None:
    outcome = await sheltered(await a_fleet(lost=lost, fenced=fenced))
    assert (outcome.step, outcome.host) == ("shelter", ROOMY)


@pytest.mark.parametrize(("fenced", "missing"), [([], SOURCE), ([BEFORE], SOURCE), ([SOURCE], BEFORE)])
async def test_a_guest_stays_while_a_lost_host_that_may_run_it_is_not_off(fenced: Sequence[str], missing: str) -> None:
    with pytest.raises(NotFenced, match=missing):
        await sheltered(await a_fleet(lost=[SOURCE, BEFORE], fenced=fenced))


async def test_a_guest_stays_when_its_host_is_back() -> None:
    with pytest.raises(SourceIsBack):
        await sheltered(await a_fleet(lost=[], fenced=[]))
