"""What becomes of each step when the host that works on it is lost."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import EVACUATION, ActionState, Cleanup, Fault, FenceProof, Instance, Move
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState, VmState
from virtfleet_common.steps import STEPS, Executor, make_step
from virtfleet_common.store.memory import MemoryStore
from virtfleet_power_sync.lost_work import LostWork, ending

from tests.unit.records import NOW, a_host, an_instance

LOST = "host-2"
FAULT = Fault(code="host_lost", message="host host-2 was lost", created=NOW, host=LOST)
RESIZE = Move(
    id="m-1", type="resize", source="host-1", source_claim="c-1", old_vm_state=VmState.ACTIVE, destination="host-2",
    claim="c-2",
)  # fmt: skip
EVACUATED = RESIZE.model_copy(update={"type": EVACUATION})
GOING = RESIZE.model_copy(update={"source": "host-2", "destination": "host-3"})


@dataclass(frozen=True, slots=True)
class Case:
    """A step on the lost host, its instance, and what is to be: the `next` step (None: the action ends) and where, what
    is set, and what the lost host owes for its return."""

    step: str
    instance: dict[str, Any]
    next: str | None
    at: str | None
    sets: dict[str, Any]
    owes: bool = False
    notes: dict[str, Any] | None = None
    up: tuple[str, ...] = ("host-1", "host-3")
    case: str = ""
    claimed_by: str | None = None
    args: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.step} {self.case}".strip()


HERE: dict[str, Any] = {"host": LOST, "claim": "c-2", "epoch": 3}
BUILDING: dict[str, Any] = {**HERE, "vm_state": VmState.BUILDING}
KEPT: dict[str, Any] = {"task_state": None}
MOVE_GONE: dict[str, Any] = {**KEPT, "move": None, "new_flavor": None}
VOLUME = {"id": "v", "attachment_id": "a", "target": "vdb", "type": "file", "path": "/v", "is_readonly": False}
NO_MORE = {"notes": {"excluded": ["a", "b"]}, "case": "for the last time"}
CASES = [
    Case("create", BUILDING, "select", "scheduler", {"host": None, "claim": None}, owes=True),
    Case("create", BUILDING, None, None, {**KEPT, "vm_state": "error", "host": None, "claim": None}, True, **NO_MORE),
    Case(
        "create", BUILDING, None, None, {**KEPT, "vm_state": "error", "host": None}, True, {"forced_host": LOST},
        case="on a host that an admin named",
    ),
    Case("delete", HERE, None, None, {**KEPT, "vm_state": "deleted", "move": None}, owes=True),
    Case("reboot_soft", HERE, None, None, KEPT),
    Case("reboot_hard", HERE, None, None, KEPT),
    Case("start", HERE, None, None, KEPT),
    Case("stop", HERE, None, None, KEPT),
    Case("pause", HERE, None, None, KEPT),
    Case("unpause", HERE, None, None, KEPT),
    Case("suspend", HERE, None, None, KEPT),
    Case("resume", HERE, None, None, KEPT),
    Case("attach_volume", HERE, None, None, {**KEPT, "block_devices": "unset"}, args={"device": VOLUME}),
    Case(
        "attach_volume", HERE, None, None, {**KEPT, "block_devices": [{**VOLUME, "attached_at": NOW.isoformat()}]},
        claimed_by="boot", args={"device": VOLUME}, case="which had begun: the guest may have the volume",
    ),
    Case("detach_volume", HERE, None, None, {**KEPT, "block_devices": "unset"}, args={"device": VOLUME}),
    Case("prepare", {"move": RESIZE}, "select_destination", "scheduler", {"move.destination": None}),
    Case("prepare", {"move": RESIZE}, None, None, MOVE_GONE, owes=True, **NO_MORE),
    Case("move", {**HERE, "move": GOING}, None, None, MOVE_GONE),
    Case("finish", {**HERE, "move": RESIZE}, None, None, {**KEPT, "vm_state": "error"}),
    Case("revert", {**HERE, "move": RESIZE}, "finish_revert", "compute.host-1", {"host": "host-1", "epoch": 4}),
    Case("revert", {**HERE, "move": RESIZE}, None, None, KEPT, up=(), case="with the source lost too"),
    Case("finish_revert", {**HERE, "move": GOING}, None, None, {**KEPT, "vm_state": "error", "move": None}),
    Case("shelter", {"move": EVACUATED}, "select_shelter", "scheduler", {"move.destination": None, "move.claim": None}),
    Case(
        "shelter", {**HERE, "move": EVACUATED}, "select_shelter", "scheduler", {"host": "host-1", "claim": "c-1"}, True,
        case="after the switch",
    ),
    Case("shelter", {"move": EVACUATED}, None, None, MOVE_GONE, **NO_MORE),
    Case(
        "shelter", {**HERE, "move": EVACUATED}, None, None, {**MOVE_GONE, "host": "host-1", "epoch": 4}, True,
        {"excluded": ["a", "b"]}, case="after the switch, for the last time",
    ),
]  # fmt: skip


def at_work(case: Case) -> tuple[Instance, ActionState]:
    action = ActionState(
        id="req-1", name="something", trace_id="0" * 32, user_id="u", project_id="p",
        step=make_step(case.step, LOST, args=case.args), claimed_by=case.claimed_by,
        started_at=NOW, expires_at=NOW + timedelta(hours=1), original_vm_state=VmState.ACTIVE, progressed_at=NOW,
        notes=case.notes or {},
    )  # fmt: skip
    return an_instance(task_state=action.step.expects[0], action=action, **case.instance), action


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_on_a_lost_host_goes_on_elsewhere_or_ends(case: Case) -> None:
    instance, action = at_work(case)
    change = ending(instance, action, LOST, FAULT, set(case.up), 3)
    step = change.get("step")
    assert (step.name, step.executor) == (case.next, case.at) if step else (case.next, case.at) == (None, None)
    assert change.get("end", False) is (case.next is None)
    assert {name: change["set"].get(name, "unset") for name in case.sets} == case.sets
    owed = [Cleanup.model_validate(one["cleanup"]).host for one in change["effects"] if one["kind"] == "cleanup"]
    assert (LOST in owed) is case.owes


@pytest.mark.parametrize("case", [one for one in CASES if one.next is None and one.step != "delete"], ids=str)
def test_work_that_ends_with_its_host_ends_with_the_fault(case: Case) -> None:
    change = ending(*at_work(case), LOST, FAULT, set(case.up), 3)
    assert change["set"]["fault"]["code"] == "host_lost"
    closed = [one["fields"] for one in change["effects"] if one["kind"] == "record" and "result" in one["fields"]]
    assert [one["result"] for one in closed] == ["Error"]


async def test_a_revert_goes_on_without_its_host_once_that_is_fenced() -> None:
    store = MemoryStore()
    lost_work = LostWork(store, Relay(store, MemoryBus(), "virtfleet/test"), PowerSyncSettings())
    instance, _ = at_work(Case("revert", {**HERE, "move": RESIZE}, "finish_revert", "compute.host-1", {}))
    before = await store.instances.insert(instance)
    lost, up = a_host(LOST, state=HostState.DOWN), a_host("host-1")
    await lost_work.end([up, lost])
    waiting = await store.instances.get(instance.id)
    assert waiting is not None
    assert (waiting.rev, waiting.host) == (before.rev, LOST)
    await lost_work.end([up, lost.model_copy(update={"fence": FenceProof(proof="silence", at=NOW)})])
    after = await store.instances.get(instance.id)
    assert after is not None
    assert after.action is not None
    assert (after.host, after.action.step.name, after.action.step.executor) == (
        "host-1", "finish_revert", "compute.host-1",
    )  # fmt: skip


def test_every_step_of_a_host_has_a_case() -> None:
    of_hosts = {name for name, spec in STEPS.items() if spec.executor is Executor.COMPUTE}
    assert {case.step for case in CASES} == of_hosts


def test_a_host_that_was_lost_while_it_built_is_not_tried_again() -> None:
    change = ending(*at_work(CASES[0]), LOST, FAULT, {"host-1"}, 3)
    assert change["action"]["notes.excluded"] == [LOST]
