"""Choosing and claiming, on the store's twin: what happens between the decision and the claim."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.audit import Kind
from virtfleet_common.auditor import audit
from virtfleet_common.errors import NoValidHost
from virtfleet_common.messages import ExplainPlacement
from virtfleet_common.records import ActionState, Allocation, Flavor, Instance, Resources, ServerGroup
from virtfleet_common.settings import SchedulerSettings
from virtfleet_common.states import VmState
from virtfleet_common.steps import make_step
from virtfleet_common.store import Expect, Store
from virtfleet_common.store.memory import MemoryStore
from virtfleet_common.store.pins import new_pin
from virtfleet_scheduler.explain import Explainer
from virtfleet_scheduler.placement import Placement
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.view import HostView

SMALL = Flavor(id="1", name="m1.small", vcpus=1, ram_mb=1024, disk_gb=10)
SETTINGS = SchedulerSettings(placement_seed=1)


class World:
    """A store with hosts, and one scheduler's placement."""

    def __init__(self) -> None:
        self.store: Store = MemoryStore()
        self.view = HostView(self.store, SETTINGS)
        self.rules = Rules.of(SETTINGS)
        self.placement = Placement(self.store, self.view, self.rules, SETTINGS)

    async def hosts(self, **vcpus: int) -> None:
        for name, count in vcpus.items():
            limits = Resources(vcpus=count, ram_mb=65536, disk_gb=1000)
            await self.store.hosts.register(name, uuid=name, limits=limits, facts={"boot_id": "b"})
        await self.view.reload()

    async def group(self, policy: str, **fields: Any) -> dict[str, str]:
        """The hint that puts an instance into a new group."""
        group = ServerGroup(
            id=str(uuid4()),
            name="g",
            project_id="p",
            user_id="u",
            policy=policy,
            created_at=datetime.now(UTC),
            **fields,
        )
        assert await self.store.server_groups.add(group)
        return {"group": group.id}

    async def place(self, instance: Instance, **how: Any) -> str:
        placed = await self.placement.choose(instance, instance.flavor, f"{instance.id}:1", **how)
        return placed.host

    async def steal(self, host: str, vcpus: int) -> None:
        """Another scheduler takes room, and this one has not heard of it."""
        wanted = Allocation(claim=f"x-{uuid4()}:1", instance_id=str(uuid4()), vcpus=vcpus, ram_mb=1, disk_gb=1)
        assert await self.store.hosts.claim(host, wanted)


def an_instance(hints: Mapping[str, Any] | None = None, **fields: Any) -> Instance:
    now = datetime.now(UTC)
    usual: dict[str, Any] = {
        "id": str(uuid4()), "name": "web", "project_id": "p", "user_id": "u", "flavor": SMALL, "hints": hints or {},
        "vm_state": VmState.BUILDING, "created_at": now, "updated_at": now,
    }  # fmt: skip
    return Instance(**usual | fields)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_refused_claim_goes_to_the_next_host(world: World) -> None:
    await world.hosts(a=8, b=4)
    await world.steal("a", 8)
    placed = await world.placement.choose(an_instance(), SMALL, "c:1", is_first=True)
    assert (placed.host, placed.refusals) == ("b", 1)
    [effect] = placed.explained("req-1")
    assert effect["fields"]["explanation"]["chosen"] == "b"
    assert effect["fields"]["explanation"]["claims_refused"] == 1


async def test_no_valid_host_carries_the_explanation(world: World) -> None:
    await world.hosts(a=1, b=1)
    for host in ("a", "b"):
        await world.steal(host, 1)
    with pytest.raises(NoValidHost) as none:
        await world.place(an_instance())
    told = none.value.facts["explanation"]
    assert [(one["filter"], one["count"]) for one in told["refused"]] == [("not_enough_vcpus", 2)]
    assert told["refused"][0]["sample"][0]["free"] == 0
    assert told["claims_refused"] == 2


async def test_a_claim_made_before_is_found_and_not_made_again(world: World) -> None:
    await world.hosts(a=8, b=8)
    instance = an_instance()
    first = await world.place(instance)
    again = await world.placement.choose(instance, SMALL, f"{instance.id}:1")
    assert (again.host, again.decision, again.explained("req-1")) == (first, None, [])
    assert sum(host.placed for host in await world.store.hosts.find()) == 1


async def test_excluded_lost_and_forced_hosts(world: World) -> None:
    await world.hosts(a=8, b=4, c=2)
    assert await world.place(an_instance(), excluded=["a"]) == "b"
    assert await world.place(an_instance(), lost=["a", "b"]) == "c"
    assert await world.place(an_instance(), forced_host="c") == "c"
    assert await world.place(an_instance(availability_zone="nova:b")) == "b"
    with pytest.raises(NoValidHost):
        await world.place(an_instance(), forced_host="c")
    with pytest.raises(NoValidHost):
        await world.place(an_instance(), forced_host="nobody")


async def test_a_host_that_was_named_at_the_creation_may_be_left_for_another_of_its_zone(world: World) -> None:
    await world.hosts(a=8, b=4)
    there = {"vm_state": VmState.ACTIVE, "host": "a"}
    assert await world.place(an_instance(availability_zone="nova:a", **there), excluded=["a"]) == "b"
    with pytest.raises(NoValidHost):
        await world.place(an_instance(availability_zone="rack:a", **there), excluded=["a"])


async def test_hints_name_instances_and_mean_their_hosts(world: World) -> None:
    await world.hosts(a=8, b=8)
    there = an_instance()
    host = await world.place(there)
    other = {"a", "b"} - {host}
    assert await world.place(an_instance({"same_host": there.id})) == host
    assert {await world.place(an_instance({"different_host": [there.id]}))} == other
    with pytest.raises(NoValidHost):
        await world.place(an_instance({"same_host": ["nobody"]}))


async def test_members_that_are_placed_at_once_stay_together_or_apart(world: World) -> None:
    await world.hosts(a=8, b=8, c=8)
    together, apart = await world.group("affinity"), await world.group("anti-affinity")
    near = await asyncio.gather(*(world.place(an_instance(together)) for _ in range(6)))
    far = await asyncio.gather(*(world.place(an_instance(apart)) for _ in range(3)))
    assert len(set(near)) == 1
    assert sorted(far) == ["a", "b", "c"]
    with pytest.raises(NoValidHost) as none:
        await world.place(an_instance(apart))
    assert none.value.facts["explanation"]["refused"][0]["filter"] == "group_is_here"


async def test_soft_groups_prefer_and_do_not_insist(world: World) -> None:
    await world.hosts(a=2, b=2)
    soft = await world.group("soft-anti-affinity")
    assert sorted([await world.place(an_instance(soft)) for _ in range(4)]) == ["a", "a", "b", "b"]
    await world.hosts(c=3)
    near = await world.group("soft-affinity")
    assert [await world.place(an_instance(near)) for _ in range(3)] == ["c", "c", "c"]


async def test_an_affinity_group_leaves_a_lost_host_together(world: World) -> None:
    await world.hosts(a=4)
    hint = await world.group("affinity")
    members = [an_instance(hint) for _ in range(2)]
    for member in members:
        assert await world.place(member) == "a"
    await world.hosts(b=4, c=4)
    moved = [
        (await world.placement.choose(one, SMALL, f"{one.id}:2", lost=["a"], is_first=True)).host for one in members
    ]
    assert len(set(moved)) == 1
    assert moved[0] != "a"


async def test_the_last_member_that_goes_frees_the_group(world: World) -> None:
    await world.hosts(a=1, b=1)
    hint = await world.group("affinity")
    first = an_instance(hint)
    host = await world.place(first)
    with pytest.raises(NoValidHost):
        await world.place(an_instance(hint))
    await world.store.hosts.release(first.id)
    await world.steal(host, 1)
    await world.view.reload()
    assert await world.place(an_instance(hint)) != host


async def test_an_affinity_claim_that_is_refused_leaves_no_pin(world: World) -> None:
    await world.hosts(a=2, b=1)
    await world.steal("a", 2)
    assert await world.place(an_instance(await world.group("affinity"))) == "b"
    [group] = await world.store.pins.find()
    assert [pin.host for pin in group.pins] == ["b"]


async def test_an_undone_placement_gives_its_own_place_back_and_no_other(world: World) -> None:
    await world.hosts(a=8, b=8)
    instance = an_instance(vm_state=VmState.ACTIVE)
    placed = await world.placement.choose(instance, SMALL, "c:1", is_first=True)
    other = "b" if placed.host == "a" else "a"
    wanted = Allocation(claim="c:1", instance_id=instance.id, vcpus=1, ram_mb=1024, disk_gb=10)
    assert await world.store.hosts.claim(other, wanted)
    await world.store.instances.insert(instance.model_copy(update={"host": other, "claim": "c:1"}))
    await world.placement._give_back(instance.id, placed)
    assert await world.store.hosts.find_claim("c:1") == other
    assert (await audit(world.store, grace=0)).is_clean


async def test_a_claim_is_not_taken_from_the_scheduler_that_took_the_step_over(world: World) -> None:
    await world.hosts(a=8)
    now, step = datetime.now(UTC), make_step("select", None)
    action = ActionState(
        id="req-1", name="create", trace_id="1" * 32, user_id="u", project_id="p", step=step, started_at=now,
        expires_at=now, original_vm_state=VmState.BUILDING, progressed_at=now, claimed_by="another",
    )  # fmt: skip
    instance = await world.store.instances.insert(an_instance(action=action))
    stale = await world.placement.choose(instance, SMALL, "req-1:1", is_first=True)
    found = await world.placement.choose(instance, SMALL, "req-1:1")
    await world.placement._give_back(instance.id, stale)
    handed_over = {"host": found.host, "claim": found.claim}
    await world.store.instances.transition(
        instance.id, expect=Expect(), set=handed_over, step=make_step("create", "a", seq=2)
    )
    await world.placement._give_back(instance.id, stale)
    assert (await audit(world.store, grace=0)).is_clean
    assert await world.store.hosts.find_claim("req-1:1") == "a"
    await world.store.instances.transition(instance.id, expect=Expect(), set={"host": None, "claim": None}, end=True)
    await world.placement._give_back(instance.id, stale)
    assert await world.store.hosts.find_claim("req-1:1") is None


async def test_a_dry_run_explains_each_guest_and_claims_nothing(world: World) -> None:
    await world.hosts(a=1, b=1)
    await world.store.flavors.add(SMALL)
    explainer = Explainer(world.store, None, world.view, world.rules)  # type: ignore[arg-type]
    answer = await explainer.explain(ExplainPlacement(project_id="p", flavor="m1.small", count=3))
    assert {answer.hosts[0], answer.hosts[1]} == {"a", "b"}
    assert answer.hosts[2] is None
    assert answer.explanations[2]["refused"][0]["filter"] == "not_enough_vcpus"
    assert all(host.placed == 0 for host in await world.store.hosts.find())


async def test_an_audit_takes_away_a_pin_whose_claim_was_never_made(world: World) -> None:
    await world.hosts(a=1, b=8)
    hint = await world.group("affinity")
    left = new_pin("dead:1", "dead", "a", "x")
    assert await world.store.pins.pin(hint["group"], left)
    await world.steal("a", 1)
    with pytest.raises(NoValidHost):
        await world.place(an_instance(hint))
    report = await audit(world.store, grace=0)
    assert Kind.LEAKED_PIN in {one.kind for one in report.mended}
    assert await world.place(an_instance(hint)) == "b"
