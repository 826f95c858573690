"""Which hosts are judged up, unknown and down."""

from datetime import timedelta

import pytest
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_power_sync.liveness import judge

from tests.unit.records import NOW, a_host

SETTINGS = PowerSyncSettings(host_unknown_after=15, host_down_after=30, mass_loss_fraction=0.5)


def seen(seconds_ago: float) -> dict[str, object]:
    return {"last_seen": NOW - timedelta(seconds=seconds_ago)}


@pytest.mark.parametrize(
    ("silence", "state"), [(0, HostState.UP), (14, HostState.UP), (15, HostState.UNKNOWN), (30, HostState.DOWN)]
)
def test_a_host_is_judged_by_its_silence(silence: float, state: HostState) -> None:
    hosts = [a_host("a", **seen(silence)), a_host("b"), a_host("c")]
    assert judge(hosts, NOW, SETTINGS).states["a"] is state


@pytest.mark.parametrize("others", [["c", "d"], ["c"], []])
def test_when_half_of_the_hosts_or_more_fall_silent_together_none_is_declared_down(others: list[str]) -> None:
    hosts = [a_host("a", **seen(60)), a_host("b", **seen(60)), *(a_host(other) for other in others)]
    judged = judge(hosts, NOW, SETTINGS)
    assert judged.is_suspect
    assert judged.states == {"a": HostState.UNKNOWN, "b": HostState.UNKNOWN, **dict.fromkeys(others, HostState.UP)}


@pytest.mark.parametrize("others", [["b", "c"], ["b"], []])
def test_one_host_that_falls_silent_alone_is_never_too_many(others: list[str]) -> None:
    judged = judge([a_host("a", **seen(60)), *(a_host(other) for other in others)], NOW, SETTINGS)
    assert (judged.states["a"], judged.is_suspect) == (HostState.DOWN, False)


def test_hosts_that_were_lost_before_do_not_count_among_those_that_fall_silent_together() -> None:
    lost = [a_host(name, state=HostState.DOWN, boot_id=None, **seen(600)) for name in "abc"]
    judged = judge([*lost, a_host("d", **seen(60)), a_host("e"), a_host("f")], NOW, SETTINGS)
    assert (judged.states["a"], judged.states["d"]) == (HostState.DOWN, HostState.DOWN)


def test_a_host_that_an_admin_forced_down_is_down_although_it_beats() -> None:
    assert judge([a_host("a", is_forced_down=True)], NOW, SETTINGS).states["a"] is HostState.DOWN


def test_a_host_whose_registration_is_void_is_down_although_it_was_just_seen() -> None:
    assert judge([a_host("a", boot_id=None)], NOW, SETTINGS).states["a"] is HostState.DOWN


def test_a_host_that_is_heard_again_before_it_is_declared_down_is_up() -> None:
    assert judge([a_host("a", state=HostState.UNKNOWN)], NOW, SETTINGS).states["a"] is HostState.UP
