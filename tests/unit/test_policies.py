"""Whose word counts on a policy, and how long a remedy that does not last is put off."""

from datetime import timedelta

import pytest
from virtfleet_common.beginning import SYSTEM
from virtfleet_common.records import ActionRecord
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_power_sync.policies import Policies, action_id, due_at

from tests.unit.records import NOW, an_instance

SETTINGS = PowerSyncSettings(policy_pause=10, policy_memory=3600)


def test_what_an_instance_does_not_say_is_as_the_settings_have_it() -> None:
    settings = PowerSyncSettings(on_guest_poweroff="restart")
    assert Policies.of({"role": "web"}, settings) == Policies("restart", "adopt")
    said = {"on_guest_poweroff": "stop", "on_unexpected_running": "enforce"}
    assert Policies.of(said, settings) == Policies("stop", "enforce")


@pytest.mark.parametrize("value", ["Restart", "enforce", ""])
def test_a_value_that_is_none_is_named_and_does_not_count(value: str) -> None:
    found = Policies.of({"on_guest_poweroff": value}, SETTINGS)
    assert found == Policies("stop", "adopt", unknown=(("on_guest_poweroff", value),))


def a_restart(seconds_ago: float, user: str = SYSTEM, action: str = "start") -> ActionRecord:
    return ActionRecord(
        id=f"req-{seconds_ago}", instance_id="i-1", action=action, user_id=user,
        start=NOW - timedelta(seconds=seconds_ago),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds_ago", "due_in"),
    [
        ([], 0),
        ([3601], 0),  # forgotten
        ([4], 6),
        ([4, 20], 16),
        ([4, 20, 100], 36),
        ([4, 20, 100, 3601], 36),
        ([60], -50),  # long due
    ],
)
def test_each_restart_within_an_hour_doubles_the_pause(seconds_ago: list[float], due_in: float) -> None:
    history = [a_restart(one) for one in seconds_ago]
    assert due_at(history, "start", NOW, SETTINGS) == NOW + timedelta(seconds=due_in)


def test_what_others_did_and_other_actions_do_not_count() -> None:
    history = [a_restart(1, user="u"), a_restart(1, action="stop"), ActionRecord(id="req-x", user_id=SYSTEM)]
    assert due_at(history, "start", NOW, SETTINGS) == NOW


def test_a_guest_that_always_dies_at_once_is_restarted_a_few_times_an_hour() -> None:
    history: list[ActionRecord] = []
    for second in range(0, 4 * 3600, 5):
        now = NOW + timedelta(seconds=second)
        if due_at(history, "start", now, SETTINGS) <= now:
            history.append(a_restart(-second))
    latest = [one for one in history if one.start and one.start > NOW + timedelta(hours=3)]
    assert 1 <= len(latest) <= 10


def test_everyone_who_read_the_same_revision_begins_the_same_action() -> None:
    first, later = an_instance(rev=1), an_instance(rev=2)
    assert action_id(first, "start") == action_id(first.model_copy(), "start")
    assert len({action_id(first, "start"), action_id(first, "stop"), action_id(later, "start")}) == 3
