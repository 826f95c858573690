"""What the store promises placement: group rules within claims, pins, the feed of hosts; MongoDB and its twin alike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest
from virtfleet_common.records import ActionState, Allocation, Flavor, Instance, Pin, Resources, ServerGroup, Step
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import TaskState, VmState
from virtfleet_common.store import Store
from virtfleet_common.store.host_feed import HostNews
from virtfleet_common.store.hosts import FAILURES_KEPT
from virtfleet_common.store.memory import MemoryStore

DATABASE = "placement_contract"
LIMITS = Resources(vcpus=8, ram_mb=8192, disk_gb=80)


@pytest.fixture(params=["memory", "mongodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store with the hosts node1 and node2."""
    found: Store
    if request.param == "memory":
        found = MemoryStore()
    else:
        found = Store.connect(CommonSettings(mongodb_url=request.getfixturevalue("mongodb_url"), database=DATABASE))
        await found.client.drop_database(DATABASE)
        await found.prepare()
    for name in ("node1", "node2"):
        await found.hosts.register(name, uuid=name, limits=LIMITS, facts={"boot_id": "b"})
    yield found
    if request.param == "mongodb":
        await found.client.drop_database(DATABASE)
        found.close()


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def an_allocation(instance_id: str, number: int = 1, group: str | None = "g") -> Allocation:
    claim = f"{instance_id}:{number}"
    return Allocation(claim=claim, instance_id=instance_id, vcpus=1, ram_mb=512, disk_gb=5, group=group)


def a_pin(instance_id: str, host: str, by: str = "x", number: int = 1) -> Pin:
    return Pin(claim=f"{instance_id}:{number}", instance_id=instance_id, host=host, by=by, at=now())


async def a_group(store: Store, policy: str = "affinity") -> None:
    group = ServerGroup(id="g", name="g", project_id="p", user_id="u", policy=policy, created_at=now())
    assert await store.server_groups.add(group)


async def pins(store: Store) -> set[tuple[str, str]]:
    group = await store.server_groups.get("g")
    assert group is not None
    return {(pin.claim, pin.host) for pin in group.pins}


# Anti-affinity within the claim


async def test_a_host_takes_no_more_members_than_the_group_allows(store: Store) -> None:
    assert await store.hosts.claim("node1", an_allocation("i1"), most_in_group=2)
    assert await store.hosts.claim("node1", an_allocation("i2"), most_in_group=2)
    assert not await store.hosts.claim("node1", an_allocation("i3"), most_in_group=2)
    assert await store.hosts.claim("node1", an_allocation("i3", group="other"), most_in_group=1)
    assert await store.hosts.claim("node1", an_allocation("i2"), most_in_group=2)
    assert await store.hosts.find_members("g") == {"node1": ["i1", "i2"]}


async def test_a_member_is_not_in_its_own_way(store: Store) -> None:
    assert await store.hosts.claim("node1", an_allocation("i1"), most_in_group=1)
    assert await store.hosts.claim("node1", an_allocation("i1", number=2), most_in_group=1)
    assert not await store.hosts.claim("node1", an_allocation("i2"), most_in_group=1)
    await store.hosts.release("i1")
    assert await store.hosts.claim("node1", an_allocation("i2"), most_in_group=1)


async def test_of_many_members_at_once_as_many_get_in_as_may(store: Store) -> None:
    claims = (store.hosts.claim("node1", an_allocation(f"i{n}"), most_in_group=3) for n in range(8))
    assert sum(await asyncio.gather(*claims)) == 3


async def test_claims_made_at_once_are_each_answered_for_themselves(store: Store) -> None:
    wanted = [an_allocation(f"i{n}", group=None) for n in range(20)]
    where = ["node1" if n % 2 else "node2" for n in range(20)]
    taken = await asyncio.gather(*(store.hosts.claim(host, one) for host, one in zip(where, wanted, strict=True)))
    for host, one, is_taken in zip(where, wanted, taken, strict=True):
        assert (await store.hosts.find_claim(one.claim) == host) is is_taken
    assert sum(taken) == 16


# Pins


async def test_the_first_pin_ties_the_group_and_others_have_to_follow(store: Store) -> None:
    await a_group(store)
    assert await store.pins.pin("g", a_pin("i1", "node1"))
    assert await store.pins.pin("g", a_pin("i1", "node1"))
    assert not await store.pins.pin("g", a_pin("i2", "node2"))
    assert await store.pins.pin("g", a_pin("i2", "node1"))
    assert await pins(store) == {("i1:1", "node1"), ("i2:1", "node1")}


async def test_of_many_at_once_all_that_pin_agree_on_a_host(store: Store) -> None:
    await a_group(store)
    hosts = ["node1", "node2", "node3"] * 4
    tied = await asyncio.gather(*(store.pins.pin("g", a_pin(f"i{n}", host)) for n, host in enumerate(hosts)))
    assert len({host for host, is_tied in zip(hosts, tied, strict=True) if is_tied}) == 1
    assert sum(tied) == 4


async def test_a_member_alone_may_move_and_then_ties_the_group_to_both_hosts(store: Store) -> None:
    await a_group(store)
    assert await store.pins.pin("g", a_pin("i1", "node1"))
    assert await store.pins.pin("g", a_pin("i1", "node2", number=2))
    assert not await store.pins.pin("g", a_pin("i2", "node1"))
    assert not await store.pins.pin("g", a_pin("i2", "node2"))


async def test_pins_on_lost_hosts_do_not_tie(store: Store) -> None:
    await a_group(store)
    assert await store.pins.pin("g", a_pin("i1", "node1"))
    assert await store.pins.pin("g", a_pin("i2", "node2"), ["node1"])
    assert not await store.pins.pin("g", a_pin("i3", "node3"), ["node1"])


async def test_a_pin_goes_with_the_attempt_that_made_it_and_with_its_claim(store: Store) -> None:
    await a_group(store)
    await store.pins.pin("g", a_pin("i1", "node1", by="first"))
    await store.pins.pin("g", a_pin("i1", "node1", by="second"))
    assert await store.pins.unpin("g", "i1:1", "node1", "first")
    assert not await store.pins.unpin("g", "i1:1", "node1", "first")
    assert await pins(store) == {("i1:1", "node1")}
    assert [group.id for group in await store.pins.find()] == ["g"]
    await store.hosts.claim("node1", an_allocation("i1"))
    await store.hosts.release("i1", "i1:1")
    assert await pins(store) == set()
    assert await store.pins.find() == []


async def test_nobody_can_pin_in_a_group_that_is_not_there(store: Store) -> None:
    assert not await store.pins.pin("g", a_pin("i1", "node1"))
    assert not await store.pins.unpin("g", "i1:1", "node1")


# What else claims and audits ask


async def test_a_release_on_one_host_leaves_the_same_claim_on_another(store: Store) -> None:
    for host in ("node1", "node2"):
        await store.hosts.claim(host, an_allocation("i1"))
    assert sorted(await store.hosts.find_holding(["i1", "nobody"])) == ["node1", "node2"]
    assert await store.hosts.release("i1", "i1:1", "node1") == 1
    assert await store.hosts.find_claim("i1:1") == "node2"


async def test_the_number_of_places_is_kept_through_claims_releases_and_registrations(store: Store) -> None:
    for n in range(3):
        await store.hosts.claim("node1", an_allocation(f"i{n}"))
    await store.hosts.release("i0")
    await store.hosts.register("node1", uuid="node1", limits=LIMITS, facts={"boot_id": "b"})
    [host, _] = await store.hosts.find_page()
    assert (host.placed, len(host.allocations)) == (2, 2)
    assert [one.id for one in await store.hosts.find_page("node1")] == ["node2"]
    assert [one.id for one in await store.hosts.find_page(limit=1)] == ["node1"]


async def test_a_failure_counts_once_and_the_latest_are_kept(store: Store) -> None:
    for n in range(FAILURES_KEPT + 4):
        await store.hosts.note_failure("node1", f"req-{n}:1")
        await store.hosts.note_failure("node1", f"req-{n}:1")
    host = await store.hosts.get("node1")
    assert host is not None
    assert [one.id for one in host.failures] == [f"req-{n}:1" for n in range(4, FAILURES_KEPT + 4)]


async def test_holders_are_read_by_id_or_page_by_page_without_deleted_ones(store: Store) -> None:
    flavor = Flavor(id="1", name="s", vcpus=2, ram_mb=512, disk_gb=5)
    for id_, state in (("a", VmState.ACTIVE), ("b", VmState.DELETED), ("c", VmState.ERROR)):
        at_work = _building() if id_ == "a" else None
        await store.instances.insert(
            Instance(
                id=id_,
                name=id_,
                project_id="p",
                user_id="u",
                vm_state=state,
                flavor=flavor,
                created_at=now(),
                updated_at=now(),
                host="node1",
                claim=f"{id_}:1",
                action=at_work,
                task_state=TaskState.SPAWNING if at_work else None,
            )
        )
    first, second = await store.instances.find_holders()
    assert (first.id, first.claim, first.flavor.vcpus, first.action and first.action.id) == ("a", "a:1", 2, "req-1")
    assert second.id == "c"
    assert [one.id for one in await store.instances.find_holders(after="a")] == ["c"]
    assert [one.id for one in await store.instances.find_holders(["b", "c"])] == ["c"]
    assert await store.instances.count_busy([TaskState.SPAWNING]) == {"node1": 1}
    assert await store.instances.count_busy([TaskState.NETWORKING]) == {}


def _building() -> ActionState:
    step = Step(name="create", executor="compute.node1", expects=[TaskState.NETWORKING])
    return ActionState(
        id="req-1", name="create", trace_id="0" * 32, user_id="u", project_id="p", step=step, started_at=now(),
        expires_at=now(), original_vm_state=VmState.BUILDING, progressed_at=now(),
    )  # fmt: skip


# The feed


class Feed:
    """What was told so far: the fields of each host, as a view would know them."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {}
        self.aggregates = 0

    def take(self, news: HostNews) -> None:
        if news.is_whole:
            self.known = {}
        for change in news.changes:
            if change.fields is None:
                self.known.pop(change.host, None)
            else:
                self.known.setdefault(change.host, {}).update(change.fields)
        self.aggregates += news.aggregates


async def test_the_feed_tells_all_hosts_and_then_every_change(store: Store) -> None:
    feed = Feed()
    async with asyncio.timeout(20), aclosing(store.host_feed.follow()) as following:
        first = await anext(following)
        assert first.is_whole
        feed.take(first)
        assert feed.known["node1"]["free.vcpus"] == 8
        assert {one.host: one.fields for one in await store.host_feed.read(["node1"])} == {"node1": feed.known["node1"]}
        await store.hosts.claim("node1", an_allocation("i1"))
        await store.hosts.set_fields("node2", {"is_enabled": False})
        await store.hosts.put_seen({"node2": {"boot_id": "b", "sequence": 1, "is_responsive": False}})
        await store.hosts.note_failure("node2", "req-1:1")
        await store.hosts.register("node3", uuid="3", limits=LIMITS, facts={"boot_id": "b", "arch": "riscv64"})
        await store.aggregates.create("fast", {})
        while "node3" not in feed.known or feed.aggregates < 2 or not feed.known["node2"]["failures"]:
            feed.take(await anext(following))
    assert (feed.known["node1"]["free.vcpus"], feed.known["node1"]["placed"]) == (7, 1)
    assert (feed.known["node2"]["is_enabled"], feed.known["node2"]["is_responsive"]) == (False, False)
    assert (feed.known["node3"]["arch"], feed.known["node3"]["free.ram_mb"]) == ("riscv64", 8192)


async def test_the_feed_begins_again_with_all_hosts_for_each_who_follows(store: Store) -> None:
    for _ in range(2):
        async with asyncio.timeout(20), aclosing(store.host_feed.follow()) as following:
            first = await anext(following)
            assert {one.host for one in first.changes} == {"node1", "node2"}
