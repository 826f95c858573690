"""Twenty schedulers place two thousand guests at once on a hundred nearly full hosts, on a real MongoDB.

Whatever they do to one another: no host exceeds its limits, no group's rule is broken, every claim is accounted for.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.audit import Kind
from virtfleet_common.auditor import audit
from virtfleet_common.errors import NoValidHost
from virtfleet_common.records import Allocation, Flavor, Host, Instance, Resources, ServerGroup
from virtfleet_common.service import repeat
from virtfleet_common.settings import CommonSettings, SchedulerSettings
from virtfleet_common.states import VmState
from virtfleet_common.store import Expect, Store
from virtfleet_local.database import Database
from virtfleet_scheduler.placement import Placement
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.view import HostView

from tests.world import polling

SCHEDULERS, GUESTS, HOSTS = 20, 2000, 100
FOLLOWING = 3
"""Schedulers that follow the changes; the others look twice a second: the staler the view, the more claims decide."""
SMALL = Flavor(id="1", name="m1.small", vcpus=1, ram_mb=1024, disk_gb=10)
ROOM = Resources(vcpus=24, ram_mb=24 * 1024, disk_gb=240)
TAKEN = 4
"""Guests that each host has at first: what is left is just enough for all, were it not for the groups."""
DATABASE = "concurrent_placement"


@pytest.fixture
async def store(mongodb_url: str) -> AsyncIterator[Store]:
    """An empty store on a database of its own."""
    found = Store.connect(CommonSettings(mongodb_url=mongodb_url, database=DATABASE, store_timeout=60.0))
    await found.client.drop_database(DATABASE)
    await found.prepare()
    yield found
    await found.client.drop_database(DATABASE)
    found.close()


def an_instance(number: int, **fields: Any) -> Instance:
    now = datetime.now(UTC)
    usual: dict[str, Any] = {
        "id": str(uuid4()), "name": f"guest-{number}", "project_id": "p", "user_id": "u", "flavor": SMALL,
        "vm_state": VmState.BUILDING, "created_at": now, "updated_at": now,
    }  # fmt: skip
    return Instance(**usual | fields)


async def nearly_full_hosts(store: Store) -> None:
    for number in range(HOSTS):
        name = f"node-{number:03}"
        await store.hosts.register(name, uuid=name, limits=ROOM, facts={"boot_id": "b"})
        for place in range(TAKEN):
            there = an_instance(place, vm_state=VmState.ACTIVE, host=name, claim=f"old-{number}:{place}")
            await store.instances.insert(there)
            wanted = Allocation(claim=there.claim or "", instance_id=there.id, vcpus=1, ram_mb=1024, disk_gb=10)
            assert await store.hosts.claim(name, wanted)


def a_group(policy: str, most: int = 1) -> ServerGroup:
    return ServerGroup(
        id=str(uuid4()), name=policy, project_id="p", user_id="u", policy=policy, max_server_per_host=most,
        created_at=datetime.now(UTC),
    )  # fmt: skip


async def groups(store: Store) -> list[ServerGroup]:
    made = [a_group("anti-affinity", most) for most in (1, 1, 2, 3)] * 5 + [a_group("affinity") for _ in range(30)]
    made = [one.model_copy(update={"id": str(uuid4())}) for one in made]
    for one in made:
        assert await store.server_groups.add(one)
    return made


async def a_scheduler(store: Store, number: int) -> tuple[Placement, asyncio.Task[None]]:
    settings = SchedulerSettings(placement_seed=number)
    view = HostView(store, settings)
    keeping = view.follow() if number < FOLLOWING else repeat(0.5, view.reload)
    return Placement(store, view, Rules.of(settings), settings), asyncio.create_task(keeping)


async def place(store: Store, placement: Placement, instance: Instance) -> str | None:
    """As the step does it: claim, then write the claim down."""
    claim = f"req-{instance.id}:1"
    try:
        placed = await placement.choose(instance, instance.flavor, claim, is_first=True)
    except NoValidHost:
        return None
    fields = {"host": placed.host, "claim": claim, "vm_state": VmState.ACTIVE}
    await store.instances.transition(instance.id, expect=Expect(), set=fields)
    return placed.host


async def all_hosts(store: Store) -> list[Host]:
    return await store.hosts.find_page(limit=HOSTS + 1)


async def test_no_number_of_schedulers_overcommits_a_host_or_breaks_a_group(store: Store) -> None:
    await nearly_full_hosts(store)
    made, chance = await groups(store), Random(7)
    hints = [{"group": chance.choice(made).id} if number % 2 else {} for number in range(GUESTS)]
    instances = [an_instance(number, hints=hint) for number, hint in enumerate(hints)]
    for instance in instances:
        await store.instances.insert(instance)
    schedulers = [await a_scheduler(store, number) for number in range(SCHEDULERS)]
    try:
        where = await asyncio.gather(
            *(place(store, schedulers[number % SCHEDULERS][0], one) for number, one in enumerate(instances))
        )
    finally:
        for _, following in schedulers:
            following.cancel()
    placed = {one.id: host for one, host in zip(instances, where, strict=True) if host}
    hosts = await all_hosts(store)
    for host in hosts:
        for kind in ("vcpus", "ram_mb", "disk_gb"):
            held = sum(getattr(one, kind) for one in host.allocations)
            assert getattr(host.free, kind) == getattr(host.limits, kind) - held >= 0
    claimed = {one.instance_id: host.id for host in hosts for one in host.allocations}
    assert {id_: claimed.get(id_) for id_ in placed} == placed
    assert len(claimed) == len(placed) + HOSTS * TAKEN
    _no_group_is_broken(made, instances, placed)
    assert (await audit(store, grace=0.1)).is_clean
    assert sum(1 for one in instances if not one.hints and one.id not in placed) == 0 or _is_full(hosts)
    assert len(placed) > GUESTS * 0.6


def _is_full(hosts: list[Host]) -> bool:
    return all(host.free.vcpus < 1 for host in hosts)


def _no_group_is_broken(made: list[ServerGroup], instances: list[Instance], placed: dict[str, str]) -> None:
    for group in made:
        mine = (one.id for one in instances if one.hints.get("group") == group.id)
        members = Counter(placed[id_] for id_ in mine if id_ in placed)
        assert members, "every group gets some of its members placed"
        if group.policy == "affinity":
            assert len(members) == 1
        else:
            assert max(members.values()) <= group.max_server_per_host


async def test_a_view_follows_the_hosts_through_an_election(database: Database, store: Store) -> None:
    await nearly_full_hosts(store)
    view = HostView(store, SchedulerSettings())
    following = asyncio.create_task(view.follow())
    await view.current()
    database.step_down()
    await store.hosts.release((await all_hosts(store))[0].allocations[0].instance_id)
    async for _ in polling("the view to know of the release"):
        if (await view.current()).room_vcpus.max() > ROOM.vcpus - TAKEN:
            break
    following.cancel()


async def test_an_audit_gives_back_what_a_dead_scheduler_claimed_and_nothing_else(store: Store) -> None:
    await nearly_full_hosts(store)
    [group] = [a_group("affinity")]
    await store.server_groups.add(group)
    placement, following = await a_scheduler(store, 1)
    kept, lost = an_instance(1), an_instance(2, hints={"group": group.id})
    for one in (kept, lost):
        await store.instances.insert(one)
    assert await place(store, placement, kept)
    await placement.choose(lost, lost.flavor, f"req-{lost.id}:1", is_first=True)
    following.cancel()
    report = await audit(store, grace=0.1)
    assert [one.kind for one in report.differences] == [Kind.LEAKED_CLAIM] == [one.kind for one in report.mended]
    assert (await audit(store, grace=0.1)).is_clean
    assert await store.pins.find() == []
    assert await store.hosts.find_claim(f"req-{kept.id}:1") is not None
