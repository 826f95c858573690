"""What a starting agent does about each guest: every row of its tables, and the guests that live elsewhere by now."""

from typing import Any

import pytest
from virtfleet_common.ports import Guest
from virtfleet_common.records import EVACUATION, Move
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_compute_agent.resume import OWN_AT_WORK, OWN_IDLE, Deed, deed, is_to_be_started

from tests.unit.records import an_instance

MOVED = Move(
    id="m-1", type="resize", source="host-1", source_claim="c-1", old_vm_state=VmState.ACTIVE, destination="host-2"
)
EVACUATED = MOVED.model_copy(update={"type": EVACUATION})
RUNNING = {VmState.ACTIVE, VmState.RESCUED, VmState.RESIZED}


def a_guest(power: PowerState = PowerState.RUNNING, epoch: int = 3) -> Guest:
    return Guest(instance_id="i-1", power_state=power, domain_id=1, epoch=epoch, action_id=None)


@pytest.mark.parametrize("vm_state", VmState)
def test_every_idle_guest_of_its_own_has_a_deed(vm_state: VmState) -> None:
    assert deed("host-1", an_instance(vm_state), a_guest()) is OWN_IDLE[vm_state]


@pytest.mark.parametrize("task_state", TaskState)
def test_every_guest_of_its_own_at_work_has_a_deed(task_state: TaskState) -> None:
    assert deed("host-1", an_instance(task_state=task_state), a_guest()) is OWN_AT_WORK[task_state]


def test_the_tables_have_a_row_for_every_state_and_no_other() -> None:
    assert set(OWN_IDLE) == set(VmState)
    assert set(OWN_AT_WORK) == set(TaskState)


@pytest.mark.parametrize("what", sorted({*OWN_IDLE.values(), *OWN_AT_WORK.values()}))
def test_nothing_of_its_own_is_switched_off_but_what_was_deleted(what: Deed) -> None:
    assert what not in {Deed.STOP, Deed.REPORT}
    if what is Deed.FORGET:
        assert [state for state, its in OWN_IDLE.items() if its is what] == [VmState.DELETED]
        assert what not in OWN_AT_WORK.values()


@pytest.mark.parametrize(
    ("instance", "epoch", "expected"),
    [
        (None, 3, Deed.REPORT),
        ({"vm_state": VmState.DELETED, "host": "host-2", "epoch": 3}, 3, Deed.FORGET),
        ({"host": "host-2", "epoch": 4}, 3, Deed.FORGET),
        ({"host": "host-2", "epoch": 3}, 3, Deed.REPORT),
        ({"host": "host-2", "epoch": 2}, 3, Deed.REPORT),
        ({"host": None, "epoch": 4}, 3, Deed.FORGET),
        ({"host": "host-2", "epoch": 4, "move": MOVED}, 3, Deed.STOP),
        ({"host": "host-2", "epoch": 4, "move": EVACUATED}, 3, Deed.STOP),
        ({"host": "host-1", "epoch": 3, "move": EVACUATED}, 3, Deed.STOP),
        ({"host": "host-1", "epoch": 3, "move": EVACUATED, "task_state": TaskState.REBUILDING}, 3, Deed.STOP),
        ({"host": "host-1", "epoch": 4, "move": EVACUATED.model_copy(update={"source": "host-2"})}, 3, Deed.RUN),
    ],
    ids=[
        "unknown", "deleted", "elsewhere since", "elsewhere in the same epoch", "elsewhere before", "nowhere since",
        "moved away, undecided", "evacuated, undecided", "being evacuated", "being evacuated, at work",
        "evacuated to here",
    ],
)  # fmt: skip
def test_a_guest_that_may_live_elsewhere_is_switched_off_only_where_the_record_is_newer(
    instance: dict[str, Any] | None, epoch: int, expected: Deed
) -> None:
    record = None if instance is None else an_instance(**instance)
    assert deed("host-1", record, a_guest(epoch=epoch)) is expected


def test_an_instance_of_another_host_without_a_guest_here_is_no_business_of_this_one() -> None:
    assert deed("host-1", an_instance(host="host-2", epoch=4), None) is Deed.KEEP


@pytest.mark.parametrize("vm_state", VmState)
def test_what_should_run_and_does_not_is_started(vm_state: VmState) -> None:
    for task_state in (None, *TaskState):
        instance = an_instance(vm_state, PowerState.RUNNING, task_state=task_state)
        should_run = vm_state in RUNNING and task_state in {None, TaskState.RESIZE_PREP}
        assert is_to_be_started("host-1", instance, None) is should_run
        assert is_to_be_started("host-1", instance, a_guest(PowerState.SHUTDOWN)) is should_run
        assert not is_to_be_started("host-1", instance, a_guest())


@pytest.mark.parametrize(("power", "is_it"), [(PowerState.RUNNING, True), (PowerState.SHUTDOWN, False)])
def test_a_resized_guest_is_started_if_it_ran(power: PowerState, is_it: bool) -> None:
    assert is_to_be_started("host-1", an_instance(VmState.RESIZED, power), None) is is_it


@pytest.mark.parametrize("record", [{"host": "host-2", "epoch": 4}, {"move": EVACUATED}])
def test_a_guest_that_lives_elsewhere_or_may_soon_is_never_started(record: dict[str, Any]) -> None:
    assert not is_to_be_started("host-1", an_instance(**record), None)
