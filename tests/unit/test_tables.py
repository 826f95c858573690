"""The action table, the step table and the API status belong together."""

import pytest
from virtfleet_api.accept import wrong_state
from virtfleet_common.actions import ACTIONS
from virtfleet_common.states import TaskState, VmState, api_status, vm_states_of_status
from virtfleet_common.steps import STEPS, Executor, make_step

from tests.unit.records import an_instance

BUILT = [(key, spec) for key, spec in ACTIONS.items() if spec.step in STEPS]


@pytest.mark.parametrize(("key", "spec"), BUILT)
def test_an_action_begins_where_its_first_step_does(key: str, spec: object) -> None:
    action = ACTIONS[key]
    assert action.step is not None
    first = STEPS[action.step].path[0]
    assert first is action.first_task or key == "create"


@pytest.mark.parametrize("spec", STEPS.values(), ids=lambda spec: spec.name)
def test_a_step_is_claimed_within_its_path_and_is_addressed_to_its_executor(spec: object) -> None:
    step = STEPS[spec.name]  # type: ignore[attr-defined]
    assert step.claimed_as is None or step.claimed_as in step.path
    made = make_step(step.name, "host-1", seq=3)
    expected = "scheduler" if step.executor is Executor.SCHEDULER else "compute.host-1"
    assert (made.target, made.seq) == (f"{expected}.{step.name}", 3)


@pytest.mark.parametrize(
    ("action", "vm_state", "task_state", "wrong"),
    [
        ("reboot_soft", VmState.ACTIVE, None, None),
        ("reboot_soft", VmState.STOPPED, None, ("vm_state", "stopped")),
        ("reboot_soft", VmState.ACTIVE, TaskState.REBOOTING, ("task_state", "rebooting")),
        ("reboot_hard", VmState.ACTIVE, TaskState.REBOOT_STARTED, None),
        ("reboot_hard", VmState.ERROR, None, None),
        ("reboot_hard", VmState.ACTIVE, TaskState.REBOOTING_HARD, ("task_state", "rebooting_hard")),
        ("reboot_hard", VmState.ACTIVE, TaskState.PAUSING, None),
        ("start", VmState.ACTIVE, None, ("vm_state", "active")),
        ("stop", VmState.RESCUED, None, None),
        ("delete", VmState.BUILDING, TaskState.SPAWNING, None),
    ],
)
def test_the_state_table_names_what_it_refuses(
    action: str, vm_state: VmState, task_state: TaskState | None, wrong: tuple[str, str] | None
) -> None:
    assert wrong_state(ACTIONS[action], an_instance(vm_state, task_state=task_state)) == wrong


@pytest.mark.parametrize(
    ("vm_state", "task_state", "status"),
    [
        (VmState.ACTIVE, None, "ACTIVE"),
        (VmState.ACTIVE, TaskState.REBOOT_PENDING, "REBOOT"),
        (VmState.ACTIVE, TaskState.REBOOT_STARTED_HARD, "HARD_REBOOT"),
        (VmState.STOPPED, TaskState.REBOOTING_HARD, "SHUTOFF"),
        (VmState.STOPPED, TaskState.RESIZE_PREP, "RESIZE"),
        (VmState.RESIZED, None, "VERIFY_RESIZE"),
        (VmState.RESIZED, TaskState.RESIZE_REVERTING, "REVERT_RESIZE"),
        (VmState.ERROR, TaskState.REBUILD_SPAWNING, "REBUILD"),
        (VmState.BUILDING, TaskState.SPAWNING, "BUILD"),
    ],
)
def test_the_status_is_novas(vm_state: VmState, task_state: TaskState | None, status: str) -> None:
    assert api_status(vm_state, task_state) == status
    assert vm_state in vm_states_of_status(status.lower())
