"""Weighers, the decision as a whole, and the columns it looks at."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtfleet_common.settings import SchedulerSettings
from virtfleet_common.store.host_feed import HostChange, as_change
from virtfleet_scheduler.columns import HostColumns
from virtfleet_scheduler.decide import SAMPLE, Decision, decide, decide_several
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.weighers.failures import RecentFailures
from virtfleet_scheduler.weighers.groups import SoftAffinity, SoftAntiAffinity
from virtfleet_scheduler.weighers.room import FreeDisk, FreeRam, FreeVcpus, Instances, IoOps

from tests.placement import a_fleet, a_group, a_request, a_row, an_aggregate, raw

RULES = Rules.of(SchedulerSettings(placement_seed=1))


def only(**weighers: float) -> Rules:
    return Rules.of(SchedulerSettings(weighers=weighers, placement_seed=1))


# Weighers


@pytest.mark.parametrize(("kind", "column"), [(FreeRam, "ram_mb"), (FreeVcpus, "vcpus"), (FreeDisk, "disk_gb")])
def test_room_weighers_say_what_is_free(kind: type, column: str) -> None:
    assert raw(kind, a_fleet(a={column: 3}, b={column: 5}), a_request()) == {"a": 3, "b": 5}


def test_load_weighers_count_guests_and_io_ops() -> None:
    hosts = a_fleet(a={"placed": 3}, b={"placed": 5})
    hosts.set_io_ops({"b": 2})
    assert raw(Instances, hosts, a_request()) == {"a": 3, "b": 5}
    assert raw(IoOps, hosts, a_request()) == {"a": 0, "b": 2}


def test_soft_groups_count_members_and_leave_other_groups_alone() -> None:
    hosts, members = a_fleet(a={}, b={}), {"a": 2, "gone": 1}
    assert raw(SoftAffinity, hosts, a_request(group=a_group("soft-affinity", members))) == {"a": 2, "b": 0}
    assert raw(SoftAntiAffinity, hosts, a_request(group=a_group("soft-anti-affinity", members))) == {"a": -2, "b": 0}
    assert raw(SoftAffinity, hosts, a_request(group=a_group("affinity", members))) is None
    assert raw(SoftAffinity, hosts, a_request()) is None


def test_a_failure_counts_half_after_a_half_life_and_none_says_nothing() -> None:
    assert raw(RecentFailures, a_fleet(a={}), a_request()) is None
    now = datetime.now(UTC)
    hosts = a_fleet(a={"failures": [{"id": "1", "at": now}]}, b={"failures": [{"id": "2", "at": now}] * 2}, c={})
    hosts.as_of = now + timedelta(seconds=600)
    said = raw(RecentFailures, hosts, a_request())
    assert said is not None
    assert said["a"] == pytest.approx(0.5, abs=0.01)
    assert said["b"] == pytest.approx(1.0, abs=0.02)
    assert said["c"] == 0


def test_an_old_failure_weighs_little_though_it_is_the_only_one() -> None:
    now = datetime.now(UTC)
    hosts = a_fleet(failed={"failures": [{"id": "1", "at": now}], "ram_mb": 8192}, fine={"ram_mb": 4096})
    assert decide(hosts, a_request(), RULES).hosts[0] == "fine"
    hosts.as_of = now + timedelta(hours=3)
    assert decide(hosts, a_request(), RULES).hosts[0] == "failed"


# The decision


def test_the_emptiest_host_is_best_and_parts_add_up_to_its_weight() -> None:
    decision = decide(a_fleet(a={"ram_mb": 2048}, b={}, c={"vcpus": 4}), a_request(), RULES)
    assert decision.hosts[0] == "b"
    assert decision.weights["b"] == pytest.approx(3.0)
    for host, parts in decision.parts.items():
        assert sum(parts.values()) == pytest.approx(decision.weights[host], abs=1e-3)


def test_a_negative_multiplier_stacks() -> None:
    assert decide(a_fleet(a={"ram_mb": 2048}, b={}), a_request(), only(ram=-1.0)).hosts[0] == "a"


def test_weights_are_normalised_over_the_hosts_that_passed() -> None:
    hosts = a_fleet(a={"ram_mb": 2000}, b={"ram_mb": 4000}, giant={"ram_mb": 8000, "state": "down"})
    decision = decide(hosts, a_request(), only(ram=2.0))
    assert decision.weights == {"b": pytest.approx(2.0), "a": pytest.approx(1.0)}


def test_each_filter_counts_what_it_refused_of_what_was_left() -> None:
    down = {f"d{n}": {"state": "down", "vcpus": 0} for n in range(5)}
    decision = decide(a_fleet(a={}, b={"vcpus": 2}, **down), a_request(vcpus=4), RULES)
    told = {one["filter"]: one for one in decision.explanation("a")["refused"]}
    assert {code: one["count"] for code, one in told.items()} == {"host_not_up": 5, "not_enough_vcpus": 1}
    assert len(told["host_not_up"]["sample"]) == SAMPLE
    assert told["not_enough_vcpus"]["sample"] == [{"host": "b", "needed": 4, "free": 2.0, "limit": 8.0}]
    explanation = decision.explanation("a")
    assert (explanation["considered"], explanation["passed"], explanation["chosen"]) == (7, 1, "a")
    assert explanation["best"][0]["host"] == "a"


def test_no_host_left_says_why() -> None:
    decision = decide(a_fleet(a={"vcpus": 0}), a_request(), RULES)
    assert decision.hosts == ()
    assert decision.explanation()["chosen"] is None
    assert decide(HostColumns(), a_request(), RULES).hosts == ()


def test_a_forced_host_is_looked_at_alone_and_not_trusted() -> None:
    hosts = a_fleet(a={}, b={"vcpus": 0})
    assert decide(hosts, a_request(forced_host="a"), RULES).hosts == ["a"]
    refused = decide(hosts, a_request(forced_host="b"), RULES)
    assert refused.hosts == ()
    assert refused.considered == 1
    assert [one["filter"] for one in refused.refused] == ["not_enough_vcpus"]
    assert decide(hosts, a_request(forced_host="nobody"), RULES).considered == 0


def test_several_guests_spread_because_each_choice_counts() -> None:
    hosts = a_fleet(a={"vcpus": 2}, b={"vcpus": 2}, c={"vcpus": 1})
    chosen = [one.hosts[0] if one.hosts else None for one in decide_several(hosts, a_request(), RULES, 6)]
    assert sorted(filter(None, chosen)) == ["a", "a", "b", "b", "c"]
    assert chosen[-1] is None
    assert hosts.room_vcpus.tolist() == [2, 2, 1]


def test_several_guests_of_an_affinity_group_stay_together() -> None:
    hosts = a_fleet(a={"vcpus": 2}, b={"vcpus": 2})
    request = a_request(group=a_group("affinity"))
    chosen = [one.hosts[0] if one.hosts else None for one in decide_several(hosts, request, RULES, 3)]
    assert chosen[0] == chosen[1]
    assert chosen[2] is None
    apart = a_request(group=a_group("anti-affinity"))
    spread = [one.hosts[0] if one.hosts else None for one in decide_several(hosts, apart, RULES, 3)]
    assert sorted(filter(None, spread)) == ["a", "b"]


def test_a_subset_is_chosen_from_at_random_and_repeatably() -> None:
    hosts = a_fleet(**{f"h{n}": {"ram_mb": 8000 - n} for n in range(6)})

    def chosen(seed: int) -> list[str]:
        rules = Rules.of(SchedulerSettings(host_subset_size=3, placement_seed=seed))
        return [decide(hosts, a_request(), rules).hosts[0] for _ in range(50)]

    assert set(chosen(1)) == {"h0", "h1", "h2"}
    assert chosen(1) == chosen(1)


def test_schedulers_break_ties_differently() -> None:
    def first(seed: int) -> str:
        hosts = HostColumns(seed=seed)
        hosts.replace_all(as_change(a_row(f"h{n}")) for n in range(20))
        return decide(hosts, a_request(), RULES).hosts[0]

    assert len({first(seed) for seed in range(10)}) > 3


HOSTS = st.lists(
    st.fixed_dictionaries(
        {
            "state": st.sampled_from(["up", "up", "up", "down"]), "is_enabled": st.booleans(),
            "vcpus": st.integers(-2, 8), "ram_mb": st.integers(0, 8) .map(lambda n: n * 512),
            "disk_gb": st.integers(0, 30), "placed": st.integers(0, 5),
            "availability_zone": st.sampled_from(["nova", "west"]),
        }
    ),
    max_size=40,
)  # fmt: skip
REQUESTS = st.builds(
    a_request,
    vcpus=st.integers(0, 4), ram_mb=st.integers(0, 4).map(lambda n: n * 512), disk_gb=st.integers(0, 20),
    availability_zone=st.sampled_from([None, "nova", "west"]),
    excluded=st.frozensets(st.sampled_from(["h0", "h1", "h2"])),
)  # fmt: skip


@given(HOSTS, REQUESTS)
@settings(max_examples=150, deadline=None)
def test_never_a_host_that_a_rule_refuses_and_always_the_heaviest(rows: list[dict[str, Any]], request: Request) -> None:
    hosts = a_fleet(**{f"h{n}": row for n, row in enumerate(rows)})
    decision = decide(hosts, request, replace(RULES, keep=100))
    fit = {f"h{n}" for n, row in enumerate(rows) if _is_fit(f"h{n}", row, request)}
    assert set(decision.hosts) == fit
    assert decision.passed == len(fit)
    assert decision.considered == len(rows) == decision.passed + sum(one["count"] for one in decision.refused)
    weights = [decision.weights[host] for host in decision.hosts]
    assert weights == sorted(weights, reverse=True)
    _weights_are_those_of_nova(decision, dict(zip(hosts.names, rows, strict=True)))


def _is_fit(name: str, row: dict[str, Any], request: Request) -> bool:
    rooms = ((request.vcpus, row["vcpus"]), (request.ram_mb, row["ram_mb"]), (request.disk_gb, row["disk_gb"]))
    is_willing = row["state"] == "up" and row["is_enabled"] and name not in request.excluded
    is_there = request.availability_zone in (None, row["availability_zone"])
    return is_willing and is_there and all(needed == 0 or free >= needed for needed, free in rooms)


def _weights_are_those_of_nova(decision: Decision, rows: dict[str, dict[str, Any]]) -> None:
    """Each free amount over the largest of the hosts that passed, summed."""
    most = {kind: max((rows[h][kind] for h in decision.hosts), default=0) for kind in ("vcpus", "ram_mb", "disk_gb")}
    for host in decision.hosts:
        parts = (max(rows[host][kind], 0) / most[kind] if most[kind] > 0 else 0 for kind in most)
        assert decision.weights[host] == pytest.approx(sum(parts), abs=1e-6)


# The columns


def test_what_is_held_is_not_free_until_it_is_given_back() -> None:
    hosts = a_fleet(a={})
    hosts.hold("a", 3, 1024, 10)
    assert (hosts.room_vcpus[0], hosts.free_vcpus[0]) == (5, 8)
    hosts.apply([HostChange("a", {"free.vcpus": 6.0})])
    assert hosts.room_vcpus[0] == 3
    hosts.hold("a", 3, 1024, 10, times=-1)
    assert (hosts.room_vcpus[0], hosts.room_ram_mb[0]) == (6, 8192)
    hosts.note_claimed("a", 1, 1024, 10)
    assert (hosts.room_vcpus[0], hosts.room_ram_mb[0], hosts.placed[0], hosts.io_ops[0]) == (5, 7168, 1, 1)


def test_hosts_come_and_go_and_the_others_keep_what_they_are() -> None:
    hosts = a_fleet(a={"vcpus": 1}, b={"vcpus": 2}, c={"vcpus": 3, "availability_zone": "west"})
    hosts.set_aggregates([an_aggregate("east", ["c"], availability_zone="east")])
    hosts.apply([HostChange("a", None), HostChange("nobody", None), HostChange("late", {"free.vcpus": 1.0})])
    assert sorted(hosts.names) == ["b", "c"]
    assert {name: hosts.free_vcpus[row] for name, row in hosts.row_of.items()} == {"b": 2, "c": 3}
    assert hosts.words.texts[hosts.zones[hosts.row_of["c"]]] == "east"
    hosts.hold("b", 1, 0, 0)
    hosts.replace_all([as_change(a_row("b", vcpus=5)), as_change(a_row("d"))])
    assert sorted(hosts.names) == ["b", "d"]
    assert hosts.room_vcpus[hosts.row_of["b"]] == 4


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "free"]), st.integers(0, 9), st.integers(0, 50)), max_size=60)
)
@settings(max_examples=100, deadline=None)
def test_columns_follow_any_changes_as_a_dictionary_would(changes: list[tuple[str, int, int]]) -> None:
    hosts, model = HostColumns(), dict[str, float]()
    for what, number, amount in changes:
        name = f"h{number}"
        if what == "add":
            hosts.apply([as_change(a_row(name, vcpus=amount))])
            model[name] = amount
        elif what == "remove":
            hosts.apply([HostChange(name, None)])
            model.pop(name, None)
        elif name in model:
            hosts.apply([HostChange(name, {"free.vcpus": float(amount)})])
            model[name] = amount
    assert {name: hosts.room_vcpus[row] for name, row in hosts.row_of.items()} == model
    assert [hosts.row_of[name] for name in hosts.names] == list(range(len(model)))


def test_a_thousand_hosts_grow_the_columns() -> None:
    chance = Random(3)
    rows = {f"h{n:04}": {"vcpus": chance.randrange(9)} for n in range(1000)}
    hosts = a_fleet(**rows)
    assert {name: hosts.free_vcpus[row] for name, row in hosts.row_of.items()} == {
        n: r["vcpus"] for n, r in rows.items()
    }
