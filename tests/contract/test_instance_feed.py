"""What the feed of instances promises whoever compares reports with the record; MongoDB and its twin alike."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common import effects
from virtfleet_common.records import ActionState, Flavor, Instance, Step
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_common.store import Delivered, Expect, Store
from virtfleet_common.store.instance_feed import InstanceNews, Recorded
from virtfleet_common.store.memory import MemoryStore

DATABASE = "instance_feed_contract"
NOW = datetime.now(UTC).replace(microsecond=0)
V, P = VmState, PowerState


@pytest.fixture(params=["memory", "mongodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store."""
    if request.param == "memory":
        yield MemoryStore()
        return
    found = Store.connect(CommonSettings(mongodb_url=request.getfixturevalue("mongodb_url"), database=DATABASE))
    await found.client.drop_database(DATABASE)
    await found.prepare()
    yield found
    await found.client.drop_database(DATABASE)
    found.close()


def an_instance(**fields: Any) -> Instance:
    usual: dict[str, Any] = {
        "id": str(uuid4()), "name": "web", "project_id": "p", "user_id": "u", "vm_state": V.ACTIVE, "host": "node1",
        "power_state": P.RUNNING, "epoch": 1, "flavor": Flavor(id="1", name="s", vcpus=1, ram_mb=1), "created_at": NOW,
        "updated_at": NOW,
    }  # fmt: skip
    return Instance(**usual | fields)


def an_action() -> ActionState:
    step = Step(name="stop", executor="compute.node1", expects=[TaskState.POWERING_OFF])
    return ActionState(
        id="req-1", name="stop", trace_id="0" * 32, user_id="u", project_id="p", step=step, started_at=NOW,
        expires_at=NOW, original_vm_state=V.ACTIVE, progressed_at=NOW,
    )  # fmt: skip


class Follower:
    """What was told so far, as a view would know it; `told` are the ids as they came."""

    def __init__(self) -> None:
        self.known: dict[str, Recorded] = {}
        self.told: list[str] = []

    def take(self, news: InstanceNews) -> None:
        self.known = {} if news.is_whole else self.known
        for id_, recorded in news.changed.items():
            self.told.append(id_)
            self.known.pop(id_, None)
            if recorded is not None:
                self.known[id_] = recorded

    async def read_on(self, store: Store, following: AsyncIterator[InstanceNews]) -> str:
        """Take all that is told before an instance that is made now; its id."""
        mark = await store.instances.insert(an_instance())
        while mark.id not in self.known:
            self.take(await anext(following))
        return mark.id


async def test_what_is_compared_of_an_instance_is_read_as_it_is_on_record(store: Store) -> None:
    seen = {"boot": "b", "sequence": 7}
    one = await store.instances.insert(an_instance(power_seen=seen, task_state=TaskState.REBOOTING, host="node2"))
    two = await store.instances.insert(an_instance(power_state=P.CRASHED))
    found = await store.instance_feed.read()
    assert found == {one.id: Recorded.of(one), two.id: Recorded.of(two)}
    assert found[one.id] == Recorded(one.id, "node2", V.ACTIVE, TaskState.REBOOTING, P.RUNNING, ("b", 7))
    assert await store.instance_feed.read([two.id, "nobody"]) == {two.id: found[two.id]}


async def test_what_is_deleted_or_on_no_host_is_not_there(store: Store) -> None:
    await store.instances.insert(an_instance(vm_state=V.DELETED))
    await store.instances.insert(an_instance(host=None))
    assert await store.instance_feed.read() == {}


async def test_the_feed_tells_all_instances_and_then_every_change(store: Store) -> None:
    moved, deleted, unplaced, stopped = [await store.instances.insert(an_instance()) for _ in range(4)]
    follower = Follower()
    async with asyncio.timeout(20), aclosing(store.instance_feed.follow()) as following:
        first = await anext(following)
        assert first.is_whole
        follower.take(first)
        assert follower.known.keys() == {moved.id, deleted.id, unplaced.id, stopped.id}
        await store.instances.transition(moved.id, expect=Expect(), set={"host": "node2", "epoch": 2})
        await store.instances.transition(deleted.id, expect=Expect(), set={"vm_state": V.DELETED})
        await store.instances.transition(unplaced.id, expect=Expect(), set={"host": None})
        off = {"power_state": P.SHUTDOWN, "vm_state": V.STOPPED, "power_seen": {"boot": "b", "sequence": 3}}
        await store.instances.transition(stopped.id, expect=Expect(), set=off)
        new = await follower.read_on(store, following)
    assert follower.known.keys() == {moved.id, stopped.id, new}
    assert follower.known[moved.id].host == "node2"
    assert follower.known[stopped.id] == Recorded(stopped.id, "node1", V.STOPPED, None, P.SHUTDOWN, ("b", 3))


async def test_the_end_of_an_action_is_told(store: Store) -> None:
    instance = await store.instances.insert(an_instance())
    follower = Follower()
    async with asyncio.timeout(20), aclosing(store.instance_feed.follow()) as following:
        follower.take(await anext(following))
        working = {"task_state": TaskState.POWERING_OFF}
        await store.instances.transition(instance.id, expect=Expect(), set=working, begin=an_action())
        ended = {"task_state": None, "power_seen": {"boot": "b", "sequence": 9}}
        await store.instances.transition(instance.id, expect=Expect(), set=ended, end=True)
        while (known := follower.known[instance.id]).seen is None:
            follower.take(await anext(following))
    assert (known.task_state, known.seen) == (None, ("b", 9))


async def test_the_database_leaves_out_what_no_comparison_needs(mongodb_url: str) -> None:
    store = Store.connect(CommonSettings(mongodb_url=mongodb_url, database=DATABASE))
    await store.client.drop_database(DATABASE)
    try:
        instance = await store.instances.insert(an_instance())
        follower = Follower()
        async with asyncio.timeout(20), aclosing(store.instance_feed.follow()) as following:
            follower.take(await anext(following))
            await follower.read_on(store, following)
            follower.told.clear()
            told = effects.event("instance.stop.start.x", {}, trace_id=None)
            working = {"task_state": TaskState.POWERING_OFF}
            await store.instances.transition(
                instance.id, expect=Expect(), set=working, begin=an_action(), effects=[told]
            )
            await store.instances.mark_delivered(Delivered(instance.id, [told["id"]], "req-1", 1))
            await store.instances.renew(instance.id, Expect(action_id="req-1"))
            await store.instances.transition(instance.id, expect=Expect(), set={"metadata.colour": "red"})
            mark = await follower.read_on(store, following)
        assert follower.told == [mark]
    finally:
        await store.client.drop_database(DATABASE)
        store.close()


async def test_the_feed_begins_again_with_all_instances_for_each_who_follows(store: Store) -> None:
    instance = await store.instances.insert(an_instance())
    for _ in range(2):
        async with asyncio.timeout(20), aclosing(store.instance_feed.follow()) as following:
            first = await anext(following)
            assert (first.is_whole, first.changed.keys()) == (True, {instance.id})
