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
    assert judge(hosts, NOW, SETTINGS)["a"] is state


def test_when_most_hosts_fall_silent_together_none_is_declared_down() -> None:
    hosts = [a_host("a", **seen(60)), a_host("b", **seen(60)), a_host("c")]
    assert judge(hosts, NOW, SETTINGS) == {"a": HostState.UNKNOWN, "b": HostState.UNKNOWN, "c": HostState.UP}


def test_a_host_that_was_down_before_stays_down_in_a_mass_loss() -> None:
    hosts = [a_host("a", state=HostState.DOWN, **seen(600)), a_host("b", **seen(60)), a_host("c")]
    assert judge(hosts, NOW, SETTINGS)["a"] is HostState.DOWN
    assert judge(hosts, NOW, SETTINGS)["b"] is HostState.UNKNOWN


def test_a_host_that_an_admin_forced_down_is_down_although_it_beats() -> None:
    assert judge([a_host("a", is_forced_down=True)], NOW, SETTINGS)["a"] is HostState.DOWN


def test_a_host_that_comes_back_is_up() -> None:
    assert judge([a_host("a", state=HostState.DOWN)], NOW, SETTINGS)["a"] is HostState.UP
