"""Power-state sync on the store's and the bus's twins: what it looks at, and what it does when its view is behind."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs
from virtfleet_common.beginning import SYSTEM
from virtfleet_common.bus import EVENTS, Delivery, Outgoing, QueueSpec
from virtfleet_common.clock import SystemClock
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.messages import GuestReport, Heartbeat, OrphanFound, PowerDelta
from virtfleet_common.records import Instance, Resources
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_common.store import Expect
from virtfleet_common.store.instance_feed import InstanceNews
from virtfleet_common.store.memory import MemoryStore
from virtfleet_power_sync.adopt import Adopter
from virtfleet_power_sync.liveness import SeenHosts
from virtfleet_power_sync.service import REPORTS
from virtfleet_power_sync.strangers import Strangers
from virtfleet_power_sync.sync import PowerSync
from virtfleet_power_sync.view import RecordView

from tests.unit.records import an_instance

V, P = VmState, PowerState
SETTINGS = PowerSyncSettings()


class Replica:
    """One power_sync, whose view knows what it is told and nothing else."""

    def __init__(self, store: MemoryStore, bus: MemoryBus) -> None:
        self.store = store
        self.view = RecordView(store)
        self.seen = SeenHosts(store)
        self.relay = Relay(store, bus, "virtfleet/power-sync")
        adopter = Adopter(store, self.relay, SystemClock(), SETTINGS)
        self.sync = PowerSync(store, self.view, self.seen, adopter, Strangers(bus), SETTINGS)
        self.taken = asyncio.Event()

    async def take(self, delivery: Delivery) -> None:
        await self.sync.take(delivery)
        await self.relay.delivered()
        self.taken.set()

    async def looks(self) -> None:
        """Its view catches up."""
        self.view.take(InstanceNews(await self.store.instance_feed.read(), is_whole=True))


class Room:
    """The host node1, spoken for by the test, and a replica that listens, and speaks on a bus of its own."""

    def __init__(self) -> None:
        self.store, self.reports, self.bus, self.boot = MemoryStore(), MemoryBus(), MemoryBus(), "boot-1"
        self.replica = Replica(self.store, self.bus)
        self.events: list[tuple[str, Any]] = []
        self._numbers = count(1)

    async def boots(self, boot: str) -> None:
        self.boot = boot
        await self.store.hosts.register("node1", uuid="node1", limits=Resources(), facts={"boot_id": boot})

    async def has(self, **fields: Any) -> Instance:
        new = an_instance(**{"host": "node1", **fields}).model_copy(update={"id": str(uuid4())})
        return await self.store.instances.insert(new)

    async def lists(self, guests: Mapping[str, PowerState]) -> None:
        """A heartbeat, and wait until it was taken."""
        reports = [GuestReport(instance_id=id_, power_state=power) for id_, power in guests.items()]
        now, number = datetime.now(UTC), next(self._numbers)
        beat = Heartbeat(host="node1", boot_id=self.boot, sequence=number, sent_at=now, guests=reports)
        await self._say("heartbeat", beat)

    async def changes(self, id_: str, power: PowerState) -> None:
        """A delta, and wait until it was taken."""
        guest = GuestReport(instance_id=id_, power_state=power)
        await self._say("delta", PowerDelta(host="node1", boot_id=self.boot, sequence=next(self._numbers), guest=guest))

    async def _say(self, word: str, report: Heartbeat | PowerDelta) -> None:
        self.replica.taken.clear()
        await self.reports.publish(Outgoing(EVENTS, f"host.node1.{word}", f"virtfleet.host.{word}", report, "test"))
        await asyncio.wait_for(self.replica.taken.wait(), 10)

    async def hears(self, delivery: Delivery) -> None:
        self.events.append((delivery.key, delivery.event.get_data()))
        await delivery.settler.ack()

    async def states(self, instance: Instance) -> tuple[VmState, PowerState]:
        found = await self.store.instances.get(instance.id)
        assert found is not None
        return found.vm_state, found.power_state

    async def write(self, instance: Instance, **fields: Any) -> None:
        """Somebody else writes the record."""
        await self.store.instances.transition(instance.id, expect=Expect(), set=fields)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    async with AsyncExitStack() as stack:
        found = Room()
        await found.boots("boot-1")
        await found.replica.looks()
        told = QueueSpec("told", [(EVENTS, "instance.#"), (EVENTS, "host.*.orphan")])
        await stack.enter_async_context(found.bus.consume(told, found.hears))
        await stack.enter_async_context(found.reports.consume(REPORTS, found.replica.take))
        yield found


async def test_where_listing_and_view_are_as_when_they_agreed_nothing_is_looked_at(room: Room) -> None:
    instance = await room.has()
    await room.replica.looks()
    for _ in range(2):
        await room.lists({instance.id: P.RUNNING})
    await room.write(instance, vm_state=V.STOPPED, power_state=P.SHUTDOWN)
    await room.lists({instance.id: P.RUNNING})
    assert await room.states(instance) == (V.STOPPED, P.SHUTDOWN), "the view knows nothing of it yet"
    await room.replica.looks()
    await room.lists({instance.id: P.RUNNING})
    assert await room.states(instance) == (V.ACTIVE, P.RUNNING)


async def test_a_view_that_is_behind_never_decides_what_is_written(room: Room) -> None:
    stopped, busy, moved, deleted = [await room.has() for _ in range(4)]
    await room.replica.looks()
    await room.write(stopped, vm_state=V.STOPPED, power_state=P.SHUTDOWN)
    await room.write(busy, task_state=TaskState.POWERING_OFF)
    await room.write(moved, host="node2", epoch=2)
    await room.write(deleted, vm_state=V.DELETED, power_state=P.NOSTATE)
    for _ in range(4):
        await room.lists({stopped.id: P.SHUTOFF, busy.id: P.SHUTOFF})
    assert [(await room.states(one))[1] for one in (stopped, busy, moved, deleted)] == [
        P.SHUTDOWN, P.RUNNING, P.RUNNING, P.NOSTATE,
    ]  # fmt: skip
    assert room.events == []


async def test_what_the_view_does_not_know_yet_is_looked_up(room: Room) -> None:
    instance = await room.has(vm_state=V.ACTIVE)
    await room.lists({instance.id: P.SHUTOFF})
    assert await room.states(instance) == (V.STOPPED, P.SHUTDOWN)
    assert not any(key.endswith(".orphan") for key, _ in room.events)


async def test_before_the_view_is_loaded_a_heartbeat_shows_that_the_host_lives_and_no_more() -> None:
    room = Room()
    await room.boots("boot-1")
    instance = await room.has()
    async with room.reports.consume(REPORTS, room.replica.take):
        await room.lists({instance.id: P.SHUTOFF})
    assert await room.states(instance) == (V.ACTIVE, P.RUNNING)
    await room.replica.seen.write()
    host = await room.store.hosts.get("node1")
    assert host is not None
    assert host.sequence == 1


async def test_what_is_written_of_a_missing_guest_begins_its_count_anew(room: Room) -> None:
    instance = await room.has()
    await room.replica.looks()
    for _ in range(2):
        await room.lists({})
    await room.write(instance, power_seen={"boot": "boot-1", "sequence": 3})
    await room.replica.looks()
    for _ in range(3):  # the first was begun before that was written
        await room.lists({})
    assert await room.states(instance) == (V.ACTIVE, P.RUNNING)
    await room.lists({})
    assert await room.states(instance) == (V.ACTIVE, P.NOSTATE)


async def test_an_orphan_that_could_not_be_told_of_is_told_of_with_the_next_report(room: Room) -> None:
    room.bus.is_available = False
    await room.lists({"nobody": P.RUNNING})
    room.bus.is_available = True
    for _ in range(3):
        await room.lists({"nobody": P.RUNNING})
    await room.lists({})
    await room.lists({"nobody": P.RUNNING})
    assert [OrphanFound.model_validate(data).guest.instance_id for _, data in room.events] == ["nobody"]
    await room.boots("boot-2")
    await room.lists({"nobody": P.RUNNING})
    assert [data["boot_id"] for _, data in room.events] == ["boot-1", "boot-2"]


async def test_a_guest_of_a_deleted_instance_is_no_orphan(room: Room) -> None:
    deleted = await room.has(vm_state=V.DELETED, power=P.NOSTATE)
    for _ in range(2):
        await room.lists({deleted.id: P.RUNNING})
    assert await room.states(deleted) == (V.DELETED, P.RUNNING)
    assert [key for key, _ in room.events] == [f"instance.power.running.{deleted.id}"]


async def test_a_difference_in_numbers_is_said_once_until_they_change(room: Room) -> None:
    known, missing = await room.has(), await room.has()
    await room.replica.looks()
    running = {known.id: P.RUNNING}
    with capture_logs() as logs:
        for listing in (running, running, {}, running, {**running, missing.id: P.RUNNING}, running):
            await room.lists(listing)
    said = [(line["listed"], line["recorded"]) for line in logs if line["event"] == "guests.counted"]
    assert said == [(1, 2), (0, 2), (1, 2), (1, 2)]


async def test_a_policy_that_is_none_is_said_once_and_the_setting_counts(room: Room) -> None:
    instance = await room.has(metadata={"on_guest_poweroff": "reboot"})
    with capture_logs() as logs:
        await room.changes(instance.id, P.SHUTOFF)
        await room.changes(instance.id, P.RUNNING)
        await room.changes(instance.id, P.SHUTOFF)
    assert await room.states(instance) == (V.STOPPED, P.SHUTDOWN)
    assert [line["value"] for line in logs if line["event"] == "policy.unknown"] == ["reboot"]


async def test_two_replicas_begin_one_restart(room: Room) -> None:
    instance = await room.has(metadata={"on_guest_poweroff": "restart"})
    other = Replica(room.store, room.bus)
    copies = QueueSpec("copies", [(EVENTS, "host.*.delta")])
    async with room.reports.consume(copies, other.take):
        await room.changes(instance.id, P.SHUTOFF)
        await asyncio.wait_for(other.taken.wait(), 10)
    found = await room.store.instances.get(instance.id)
    assert found is not None
    assert found.action is not None
    assert list(found.accepted) == [found.action.id]
    (history,) = await room.store.actions.find(instance.id)
    assert (history.id, history.action, history.user_id) == (found.action.id, "start", SYSTEM)
    told = sorted(key for key, _ in room.events)
    assert told == [f"instance.power.stopped.{instance.id}", f"instance.start.start.{instance.id}"]
