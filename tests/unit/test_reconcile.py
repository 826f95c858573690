"""What a report of the hypervisor changes in the record."""

import pytest
from virtfleet_common.messages import Heartbeat
from virtfleet_common.records import Sighting
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_power_sync.reconcile import differs
from virtfleet_power_sync.sync import is_newer

from tests.unit.records import NOW, an_instance

V, P = VmState, PowerState


@pytest.mark.parametrize(
    ("vm_state", "recorded", "reported", "becomes", "word"),
    [
        (V.ACTIVE, P.RUNNING, P.SHUTOFF, V.STOPPED, "stopped"),
        (V.ACTIVE, P.RUNNING, P.CRASHED, V.STOPPED, "crashed"),
        (V.ACTIVE, P.RUNNING, P.PAUSED, V.PAUSED, "paused"),
        (V.ACTIVE, P.RUNNING, P.SUSPENDED, V.SUSPENDED, "suspended"),
        (V.STOPPED, P.SHUTDOWN, P.RUNNING, V.ACTIVE, "running"),
        (V.PAUSED, P.PAUSED, P.RUNNING, V.ACTIVE, "running"),
        (V.SUSPENDED, P.SHUTDOWN, P.RUNNING, V.ACTIVE, "running"),
        (V.ERROR, P.RUNNING, P.SHUTOFF, V.ERROR, "stopped"),
        (V.RESCUED, P.RUNNING, P.SHUTOFF, V.RESCUED, "stopped"),
        (V.RESIZED, P.RUNNING, P.SHUTOFF, V.RESIZED, "stopped"),
        (V.ACTIVE, P.RUNNING, P.NOSTATE, V.ACTIVE, "missing"),
    ],
)
def test_the_record_follows_the_hypervisor(
    vm_state: VmState, recorded: PowerState, reported: PowerState, becomes: VmState, word: str
) -> None:
    difference = differs(an_instance(vm_state, recorded), reported)
    assert difference is not None
    assert (difference.word, difference.set) == (word, {"power_state": reported.shown, "vm_state": becomes})


@pytest.mark.parametrize("reported", [P.RUNNING, P.BLOCKED])
def test_a_report_that_says_the_same_changes_nothing(reported: PowerState) -> None:
    assert differs(an_instance(V.ACTIVE, P.RUNNING), reported) is None


def test_an_instance_in_an_action_is_left_to_it() -> None:
    assert differs(an_instance(V.ACTIVE, P.RUNNING, task_state=TaskState.REBOOTING), P.SHUTOFF) is None


def test_a_suspended_guest_reads_as_shut_down_and_stays_suspended() -> None:
    assert differs(an_instance(V.SUSPENDED, P.SHUTDOWN), P.SHUTOFF) is None


@pytest.mark.parametrize(
    ("boot", "sequence", "newer"),
    [("boot-1", 6, True), ("boot-1", 5, False), ("boot-1", 4, False), ("boot-2", 1, True)],
)
def test_a_report_begun_before_the_record_was_written_is_no_news(boot: str, sequence: int, newer: bool) -> None:
    instance = an_instance(power_seen=Sighting(boot="boot-1", sequence=5))
    report = Heartbeat(host="host-1", boot_id=boot, sequence=sequence, sent_at=NOW)
    assert is_newer(report, instance) is newer
