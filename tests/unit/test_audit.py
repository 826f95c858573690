"""The audit's comparison: what is named, and what is rightly not."""

from datetime import UTC, datetime
from typing import Any

import pytest
from virtfleet_common.audit import Books, Difference, Kind, compare, confirmed
from virtfleet_common.records import Allocation, Cleanup, Holder, Host, Pin, Resources, ServerGroup

SIZE = {"vcpus": 1, "ram_mb": 512, "disk_gb": 5}
BIG = {"vcpus": 2, "ram_mb": 1024, "disk_gb": 10}
NOW = datetime(2030, 1, 1, tzinfo=UTC)
SPAWN = {"name": "select", "executor": "scheduler", "expects": ["scheduling"]}
MOVE = {"id": "m", "type": "resize", "source": "a", "source_claim": "r1:1", "old_vm_state": "active"}


def an_allocation(claim: str, instance_id: str = "i", group: str | None = None, **size: int) -> Allocation:
    return Allocation(claim=claim, instance_id=instance_id, group=group, **{**SIZE, **size})


def a_host(name: str, *allocations: Allocation, **fields: Any) -> Host:
    limits = Resources(vcpus=8, ram_mb=8192, disk_gb=80)
    free = {kind: getattr(limits, kind) - sum(getattr(one, kind) for one in allocations) for kind in SIZE}
    usual = {"limits": limits, "free": Resources(**free), "allocations": allocations, "placed": len(allocations)}
    return Host(id=name, uuid=name, **usual | fields)


def a_holder(id_: str = "i", **fields: Any) -> Holder:
    return Holder(**{"id": id_, "vm_state": "active", "host": "a", "claim": "r1:1", "flavor": SIZE} | fields)


def a_cleanup(claim: str, host: str = "a") -> Cleanup:
    return Cleanup(id="c", host=host, instance_id="i", claim=claim, created_at=NOW)


def kinds(*hosts: Host, holders: list[Holder] | None = None, cleanups: Any = (), groups: Any = ()) -> list[Kind]:
    return [one.kind for one in compare(Books(hosts, holders or [], cleanups, groups))]


def test_an_instance_with_its_claim_is_in_order() -> None:
    assert kinds(a_host("a", an_allocation("r1:1")), holders=[a_holder()]) == []


def test_a_claim_that_nothing_holds_is_leaked() -> None:
    assert kinds(a_host("a", an_allocation("r1:1"))) == [Kind.LEAKED_CLAIM]
    elsewhere = a_holder(claim="r2:1", host="b")
    assert kinds(a_host("a", an_allocation("r1:1")), holders=[elsewhere]) == [Kind.LEAKED_CLAIM]


def test_the_same_claim_on_a_second_host_is_leaked() -> None:
    hosts = a_host("a", an_allocation("r1:1")), a_host("b", an_allocation("r1:1"))
    [found] = compare(Books(hosts, [a_holder()], []))
    assert (found.kind, found.host) == (Kind.LEAKED_CLAIM, "b")


@pytest.mark.parametrize(
    ("seq", "expected"), [(1, []), (2, [Kind.LEAKED_CLAIM])]
)  # fmt: skip
def test_a_claim_whose_step_is_still_current_may_yet_be_written_down(seq: int, expected: list[Kind]) -> None:
    at_work = a_holder(host=None, claim=None, action={"id": "r1", "step": {**SPAWN, "seq": seq}})
    assert kinds(a_host("a", an_allocation("r1:1")), holders=[at_work]) == expected


@pytest.mark.parametrize("claim", ["r1:1", None])
def test_a_claim_whose_release_is_under_way_is_not_leaked(claim: str | None) -> None:
    leaving = a_holder(host=None, claim=None, outbox=[{"kind": "release", "claim": claim}])
    assert kinds(a_host("a", an_allocation("r1:1")), holders=[leaving]) == []


def test_a_clean_up_holds_its_claim_before_and_after_it_is_noted() -> None:
    host = a_host("a", an_allocation("r0:1"), an_allocation("r1:1"))
    assert kinds(host, holders=[a_holder()], cleanups=[a_cleanup("r0:1")]) == []
    owing = a_holder(outbox=[{"kind": "cleanup", "cleanup": a_cleanup("r0:1").document()}])
    assert kinds(host, holders=[owing]) == []


def test_a_move_holds_both_places_at_their_sizes() -> None:
    hosts = a_host("a", an_allocation("r1:1")), a_host("b", an_allocation("r2:1", **BIG))
    before = a_holder(new_flavor=BIG, move={**MOVE, "destination": "b", "claim": "r2:1"})
    after = a_holder(
        host="b", claim="r2:1", flavor=BIG, old_flavor=SIZE, move={**MOVE, "destination": "b", "claim": "r2:1"}
    )
    assert kinds(*hosts, holders=[before]) == kinds(*hosts, holders=[after]) == []
    wrong = a_host("a", an_allocation("r1:1")), a_host("b", an_allocation("r2:1"))
    assert kinds(*wrong, holders=[before]) == kinds(*wrong, holders=[after]) == [Kind.WRONG_AMOUNT]


def test_a_claim_that_the_host_does_not_know_is_missing() -> None:
    assert kinds(a_host("a"), holders=[a_holder()]) == [Kind.MISSING_CLAIM]
    moving = a_holder(move={**MOVE, "destination": "b", "claim": "r2:1"})
    assert kinds(a_host("a", an_allocation("r1:1")), a_host("b"), holders=[moving]) == [Kind.MISSING_CLAIM]


def test_sums_that_do_not_add_up_are_named() -> None:
    wrong = a_host("a", an_allocation("r1:1"), free=Resources(vcpus=8, ram_mb=8192, disk_gb=80))
    assert kinds(wrong, holders=[a_holder()]) == [Kind.WRONG_SUM]
    miscounted = a_host("a", an_allocation("r1:1"), placed=0)
    assert kinds(miscounted, holders=[a_holder()]) == [Kind.WRONG_SUM]
    over = a_host("a", an_allocation("r1:1", vcpus=9))
    assert kinds(over, holders=[a_holder(flavor={**SIZE, "vcpus": 9})]) == [Kind.OVERCOMMITTED]


def a_group(policy: str, *pins: tuple[str, str]) -> ServerGroup:
    tied = [Pin(claim=claim, instance_id=claim[0], host=host, by="x", at=NOW) for claim, host in pins]
    return ServerGroup(id="g", name="g", project_id="p", user_id="u", policy=policy, pins=tied, created_at=NOW)


def two_members(second_host: str) -> tuple[list[Host], list[Holder]]:
    first, second = an_allocation("i:1", "i", "g"), an_allocation("j:1", "j", "g")
    on_a = [first, *([second] if second_host == "a" else [])]
    hosts = [a_host("a", *on_a), a_host("b", *([second] if second_host == "b" else []))]
    return hosts, [a_holder(claim="i:1"), a_holder("j", claim="j:1", host=second_host)]


def test_a_group_that_is_apart_or_too_close_is_broken() -> None:
    hosts, holders = two_members("b")
    tied = a_group("affinity", ("i:1", "a"), ("j:1", "b"))
    assert kinds(*hosts, holders=holders, groups=[tied]) == [Kind.GROUP_BROKEN] * 2
    assert kinds(*hosts, holders=holders, groups=[a_group("anti-affinity")]) == []
    hosts, holders = two_members("a")
    assert kinds(*hosts, holders=holders, groups=[a_group("anti-affinity")]) == [Kind.GROUP_BROKEN]
    assert kinds(*hosts, holders=holders, groups=[a_group("affinity", ("i:1", "a"), ("j:1", "a"))]) == []


def test_pins_and_claims_belong_together() -> None:
    hosts, holders = two_members("a")
    missing = a_group("affinity", ("i:1", "a"))
    assert kinds(*hosts, holders=holders, groups=[missing]) == [Kind.MISSING_PIN]
    leaked = a_group("affinity", ("i:1", "a"), ("j:1", "a"), ("k:1", "a"))
    assert kinds(*hosts, holders=holders, groups=[leaked]) == [Kind.LEAKED_PIN]


def test_only_what_two_looks_see_is_confirmed() -> None:
    leak = Difference(Kind.LEAKED_CLAIM, "a", "r1:1", "i")
    same = Difference(Kind.LEAKED_CLAIM, "a", "r1:1", "i", {"vcpus": 1})
    other = Difference(Kind.LEAKED_CLAIM, "a", "r2:1", "i")
    assert confirmed([leak], [same, other]) == [same]
