"""What a report of the hypervisor changes in the record: a case for each row of the table."""

from typing import Any

import pytest
from virtfleet_common.records import Sighting
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_common.store.instance_feed import Recorded
from virtfleet_power_sync.policies import Policies
from virtfleet_power_sync.reconcile import Difference, differs, is_newer

from tests.unit.records import an_instance

V, P = VmState, PowerState
OTHERS = (V.BUILDING, V.RESCUED, V.RESIZED, V.ERROR, V.DELETED)
RESTART = Policies(on_guest_poweroff="restart")
ENFORCE = Policies(on_unexpected_running="enforce")


def recorded(vm_state: VmState = V.ACTIVE, power: PowerState = P.RUNNING, **more: Any) -> Recorded:
    return Recorded.of(an_instance(vm_state, power, **more))


@pytest.mark.parametrize(
    ("vm_state", "power", "reported", "becomes", "word"),
    [
        (V.ACTIVE, P.RUNNING, P.SHUTOFF, V.STOPPED, "stopped"),
        (V.ACTIVE, P.RUNNING, P.SHUTDOWN, V.STOPPED, "stopped"),
        (V.ACTIVE, P.RUNNING, P.CRASHED, V.STOPPED, "crashed"),
        (V.ACTIVE, P.RUNNING, P.FAILED, V.STOPPED, "crashed"),
        (V.ACTIVE, P.RUNNING, P.PAUSED, V.PAUSED, "paused"),
        (V.ACTIVE, P.RUNNING, P.SUSPENDED, V.SUSPENDED, "suspended"),
        (V.STOPPED, P.SHUTDOWN, P.RUNNING, V.ACTIVE, "running"),
        (V.STOPPED, P.SHUTDOWN, P.PAUSED, V.PAUSED, "paused"),
        (V.STOPPED, P.SHUTDOWN, P.CRASHED, V.STOPPED, "crashed"),
        (V.PAUSED, P.PAUSED, P.RUNNING, V.ACTIVE, "running"),
        (V.PAUSED, P.PAUSED, P.SHUTOFF, V.STOPPED, "stopped"),
        (V.PAUSED, P.PAUSED, P.CRASHED, V.STOPPED, "crashed"),
        (V.SUSPENDED, P.SHUTDOWN, P.RUNNING, V.ACTIVE, "running"),
        (V.SUSPENDED, P.SHUTDOWN, P.PAUSED, V.PAUSED, "paused"),
        (V.SUSPENDED, P.SUSPENDED, P.SHUTOFF, V.SUSPENDED, "stopped"),
        *((other, P.RUNNING, P.SHUTOFF, other, "stopped") for other in OTHERS),
        *((other, P.SHUTDOWN, P.RUNNING, other, "running") for other in OTHERS),
        *((other, P.RUNNING, P.PAUSED, other, "paused") for other in OTHERS),
        *((any_, P.RUNNING, None, any_, "missing") for any_ in V),
        (V.ACTIVE, P.SHUTDOWN, P.SHUTOFF, V.STOPPED, "stopped"),  # the power state is known, vm_state did not follow it
    ],
)
def test_the_record_follows_the_hypervisor(
    vm_state: VmState, power: PowerState, reported: PowerState | None, becomes: VmState, word: str
) -> None:
    shown = P.NOSTATE if reported is None else reported.shown
    found = differs(recorded(vm_state, power), reported)
    assert found == Difference(word, {"power_state": shown, "vm_state": becomes})


@pytest.mark.parametrize(
    ("vm_state", "power", "reported"),
    [
        (V.ACTIVE, P.RUNNING, P.RUNNING),
        (V.ACTIVE, P.RUNNING, P.BLOCKED),
        (V.SUSPENDED, P.SHUTDOWN, P.SHUTOFF),  # a suspended guest reads as shut down, and stays suspended
        (V.ERROR, P.SHUTOFF, P.SHUTDOWN),
        (V.ACTIVE, P.NOSTATE, None),  # known to be missing
    ],
)
def test_a_report_that_says_the_same_changes_nothing(
    vm_state: VmState, power: PowerState, reported: PowerState | None
) -> None:
    assert differs(recorded(vm_state, power), reported) is None


@pytest.mark.parametrize("reported", [P.NOSTATE, P.BUILDING])
def test_a_guest_that_is_there_and_whose_state_nobody_knows_proves_nothing(reported: PowerState) -> None:
    assert differs(recorded(V.ACTIVE, P.RUNNING), reported) is None


@pytest.mark.parametrize("reported", [P.SHUTOFF, None])
@pytest.mark.parametrize("policies", [Policies(), RESTART])
def test_an_instance_in_an_action_is_left_to_it(reported: PowerState | None, policies: Policies) -> None:
    assert differs(recorded(V.ACTIVE, P.RUNNING, task_state=TaskState.REBOOTING), reported, policies) is None


@pytest.mark.parametrize(
    ("policies", "vm_state", "reported", "remedy", "word"),
    [
        (RESTART, V.ACTIVE, P.SHUTOFF, "start", "stopped"),
        (RESTART, V.ACTIVE, P.CRASHED, "start", "crashed"),
        (ENFORCE, V.STOPPED, P.RUNNING, "stop", "running"),
        (ENFORCE, V.STOPPED, P.PAUSED, "stop", "paused"),
    ],
)
def test_a_policy_keeps_what_is_wanted_and_asks_for_an_action(
    policies: Policies, vm_state: VmState, reported: PowerState, remedy: str, word: str
) -> None:
    usual = P.RUNNING if vm_state is V.ACTIVE else P.SHUTDOWN
    states = {"power_state": reported.shown, "vm_state": vm_state}
    assert differs(recorded(vm_state, usual), reported, policies) == Difference(word, states, True, remedy)
    again = differs(recorded(vm_state, reported), reported, policies)
    assert again == Difference(word, states, False, remedy), "it is on record, and still to be remedied"


@pytest.mark.parametrize(
    ("policies", "vm_state", "power", "reported"),
    [
        (RESTART, V.ACTIVE, P.RUNNING, P.PAUSED),
        (RESTART, V.ACTIVE, P.RUNNING, None),
        (RESTART, V.PAUSED, P.PAUSED, P.SHUTOFF),
        (RESTART, V.RESCUED, P.RUNNING, P.SHUTOFF),
        (RESTART, V.STOPPED, P.SHUTDOWN, P.RUNNING),
        (ENFORCE, V.ACTIVE, P.RUNNING, P.SHUTOFF),
        (ENFORCE, V.PAUSED, P.PAUSED, P.RUNNING),
        (ENFORCE, V.SUSPENDED, P.SHUTDOWN, P.RUNNING),
    ],
)
def test_a_policy_says_nothing_of_other_rows(
    policies: Policies, vm_state: VmState, power: PowerState, reported: PowerState | None
) -> None:
    one = recorded(vm_state, power)
    assert differs(one, reported, policies) == differs(one, reported)


@pytest.mark.parametrize(
    ("boot", "sequence", "newer"),
    [("boot-1", 6, True), ("boot-1", 5, False), ("boot-1", 4, False), ("boot-2", 1, True)],
)
def test_a_report_begun_before_the_record_was_written_is_no_news(boot: str, sequence: int, newer: bool) -> None:
    assert is_newer(recorded(power_seen=Sighting(boot="boot-1", sequence=5)), boot, sequence) is newer


def test_any_report_is_news_to_a_record_that_knows_of_none() -> None:
    assert is_newer(recorded(), "boot-1", 1)
