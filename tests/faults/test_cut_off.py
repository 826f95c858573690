"""A host that is cut off, or stands still, and lives on: its guests go elsewhere, and it lets go of what it has."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest
from virtfleet_common.client import FleetClient
from virtfleet_common.records import Instance
from virtfleet_common.states import HostState, PowerState, VmState
from virtfleet_local.fleet import DATABASE_NAME, LocalFleet

from tests.conftest import brittle
from tests.faults.test_kill_evacuation import SWIFT, all_are_up, books_balance, lives_elsewhere, log_of
from tests.proxy import Wire, wire_to
from tests.witness import everything_is_delivered
from tests.world import World, polling

pytestmark = [pytest.mark.qemu, pytest.mark.fleet]
EDGE = "host-1"
SELF_FENCING = {"VIRTFLEET_ISOLATION_POLICY": "stop"}


@dataclass(frozen=True)
class Edge:
    """A fleet whose first host hangs on two wires."""

    fleet: LocalFleet
    to_broker: Wire
    to_database: Wire


@pytest.fixture(scope="module")
def islands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """Three QEMU hosts, each with storage of its own."""
    with brittle(tmp_path_factory.mktemp("islands"), 3, "qemu", **SWIFT) as fleet:
        file = fleet.file
        with wire_to(file.amqp_url) as (to_broker, amqp_url), wire_to(file.mongodb_url) as (to_database, mongodb_url):
            straight = mongodb_url.partition("?")[0] + "?directConnection=true"
            env = {"VIRTFLEET_AMQP_URL": amqp_url, "VIRTFLEET_MONGODB_URL": straight, **SELF_FENCING}
            fleet.stop_service(EDGE)
            with fleet.connect() as client, client[DATABASE_NAME]["hosts"].watch() as changes:
                fleet.start_service(EDGE, env)
                next(one for one in changes if "boot_id" in one.get("updateDescription", {}).get("updatedFields", {}))
            yield Edge(fleet, to_broker, to_database)


@pytest.fixture
async def world(islands: Edge) -> AsyncIterator[World]:
    """The fleet as a program sees it, all its hosts up."""
    async with World(islands.fleet) as found:
        await all_are_up(found)
        yield found


@pytest.fixture
def edge(islands: Edge) -> Iterator[Edge]:
    """The wires, whole again afterwards."""
    yield islands
    islands.to_broker.mend()
    islands.to_database.mend()
    for host in (EDGE, "host-2"):
        islands.fleet.process(host).signal(signal.SIGCONT)


async def a_guest_on_the_edge(world: World) -> Instance:
    """A running guest of the host that will be cut off."""
    for host in ("host-2", "host-3"):
        await world.store.hosts.set_fields(host, {"is_enabled": False})
    instance = await world.create()
    for host in ("host-2", "host-3"):
        await world.store.hosts.set_fields(host, {"is_enabled": True})
    assert instance.host == EDGE
    return instance


async def isolate(world: World, edge: Edge, guest: Instance) -> None:
    """Cut both wires, and wait until the host has powered off its guest."""
    edge.to_broker.cut()
    edge.to_database.cut()
    async for _ in polling("the isolated host to power off its guest"):
        if EDGE not in world.places(guest.id):
            return


async def is_settled(world: World, before: Instance) -> Instance:
    """The guest runs exactly once, where its record says, and no host holds anything else of it."""
    await all_are_up(world)
    await everything_is_delivered(world)
    async for _ in polling("the stale copy to be gone"):
        is_one = len(world.guests(before.id)) == 1 and await books_balance(world, before.id)
        if is_one and not await world.store.cleanups.find():
            break
    now = await world.instance(before.id)
    assert world.places(before.id) == [now.host]
    assert (now.vm_state, now.power_state) == (VmState.ACTIVE, PowerState.RUNNING)
    assert [path.parent.parent.name for path in world.fleet.data.glob(f"hosts/*/instances/{before.id}")] == [now.host]
    return now


async def test_a_host_that_is_cut_off_stops_its_guests_before_they_run_elsewhere(world: World, edge: Edge) -> None:
    before = await a_guest_on_the_edge(world)
    await isolate(world, edge, before)
    moved = await lives_elsewhere(world, before)
    assert EDGE not in world.places(before.id)
    lost_at = (await world.host(EDGE)).lost_at
    assert lost_at is not None
    assert powered_off_at(world) < lost_at, "it was declared lost while its guest still ran"
    edge.to_broker.mend()
    edge.to_database.mend()
    assert (await is_settled(world, before)).host == moved.host


def powered_off_at(world: World) -> datetime:
    """When the edge's guests were last off, by its own log."""
    lines = [line for line in log_of(world, EDGE).splitlines() if '"guests.powered_off"' in line]
    return datetime.fromisoformat(json.loads(lines[-1])["timestamp"])


async def test_a_host_that_only_the_broker_cannot_reach_comes_back_when_it_is_heard(world: World, edge: Edge) -> None:
    before = await a_guest_on_the_edge(world)
    edge.to_broker.cut()
    moved = await lives_elsewhere(world, before)
    async for _ in polling("the host, which can read the record, to let go of its guest"):
        if EDGE not in world.places(before.id):
            break
    assert (await world.host(EDGE)).state is HostState.DOWN
    edge.to_broker.mend()
    assert (await is_settled(world, before)).host == moved.host


async def test_a_host_that_is_cut_off_for_a_moment_starts_again_what_it_had_stopped(world: World, edge: Edge) -> None:
    await world.store.hosts.set_fields("host-2", {"is_enabled": False})
    await world.store.hosts.set_fields("host-3", {"is_enabled": False})
    before = await a_guest_on_the_edge(world)
    await isolate(world, edge, before)
    edge.to_broker.mend()
    edge.to_database.mend()
    await is_settled(world, before)


async def test_an_agent_that_stood_still_finds_its_guest_elsewhere_and_lets_go_of_it(world: World, edge: Edge) -> None:
    before = await a_guest_on_the_edge(world)
    edge.fleet.process(EDGE).signal(signal.SIGSTOP)
    moved = await lives_elsewhere(world, before)
    edge.fleet.process(EDGE).signal(signal.SIGCONT)
    assert (await is_settled(world, before)).host == moved.host


@pytest.mark.parametrize(
    "point", ["select_shelter.middle", "shelter.middle", "shelter.switched", "shelter.before_finish"]
)
async def test_an_agent_that_wakes_up_in_the_middle_of_the_evacuation_lets_go_too(
    world: World, edge: Edge, point: str
) -> None:
    before = await a_guest_on_the_edge(world)
    world.arm(point, "hang")
    edge.fleet.process(EDGE).signal(signal.SIGSTOP)
    await world.taken(point)
    edge.fleet.process(EDGE).signal(signal.SIGCONT)
    async for _ in polling("the host that woke up to let go of its guest"):
        if EDGE not in world.places(before.id):
            break
    world.release(point)
    assert (await is_settled(world, await lives_elsewhere(world, before))).host != EDGE


@pytest.mark.parametrize("point", ["after_claim", "middle", "before_finish"])
async def test_an_agent_that_stood_still_in_the_middle_of_a_reboot_starts_nothing(
    world: World, edge: Edge, point: str
) -> None:
    before = await a_guest_on_the_edge(world)
    world.arm(f"reboot_hard.{point}", "hang")
    sent = await world.act(before.id, {"reboot": {"type": "HARD"}})
    await world.taken(f"reboot_hard.{point}")
    moved = await lives_elsewhere(world, before)
    world.release(f"reboot_hard.{point}")
    assert (await is_settled(world, before)).host == moved.host
    reboot = await world.action(sent.headers["x-openstack-request-id"])
    assert reboot.result == "Error", reboot
    assert "host-1 was lost" in str(reboot.message), reboot


async def test_a_host_that_cannot_read_the_record_keeps_its_guests(world: World, edge: Edge) -> None:
    before = await a_guest_on_the_edge(world)
    guests = set(world.guests(before.id))
    edge.to_database.cut()
    await beats(world, 12)  # more than it takes to be isolated, and to be lost
    assert (await world.host(EDGE)).state is HostState.UP
    edge.to_database.mend()
    await is_settled(world, before)
    assert set(world.guests(before.id)) == guests


async def test_when_most_hosts_fall_silent_together_none_is_declared_lost(world: World, edge: Edge) -> None:
    before = await a_guest_on_the_edge(world)
    silent = [edge.fleet.process(host) for host in (EDGE, "host-2")]
    async with FleetClient(edge.fleet.file.amqp_url) as admin, admin.subscribed("fleet.mass_loss") as events:
        for agent in silent:
            agent.signal(signal.SIGSTOP)
        async with asyncio.timeout(30):
            alarm = await anext(events)
        await beats(world, 12, "host-3")  # more than it takes to be lost
    assert {EDGE, "host-2"} <= set(alarm.data["hosts"])
    async for _ in polling("the silent hosts to be unknown, and the other one to be up"):
        states = {host.id: host.state for host in await world.store.hosts.find()}
        assert HostState.DOWN not in states.values()
        if states == {EDGE: HostState.UNKNOWN, "host-2": HostState.UNKNOWN, "host-3": HostState.UP}:
            break
    for agent in silent:
        agent.signal(signal.SIGCONT)
    assert (await is_settled(world, before)).epoch == before.epoch


async def test_power_sync_that_stood_still_declares_nobody_lost(world: World, edge: Edge) -> None:
    before = await a_guest_on_the_edge(world)
    power_sync = world.fleet.process("power-sync")
    power_sync.signal(signal.SIGSTOP)
    await beats(world, 12)  # more than it takes to be lost
    power_sync.signal(signal.SIGCONT)
    (host,) = [one for one in await world.store.hosts.find() if one.id == EDGE]
    async for _ in polling("power_sync to see the hosts again"):
        seen = await world.host(EDGE)
        assert seen.state is not HostState.DOWN
        if seen.state is HostState.UP and seen.sequence > host.sequence:
            break
    assert (await is_settled(world, before)).epoch == before.epoch


async def beats(world: World, count: int, host: str = EDGE) -> None:
    """Wait for so many heartbeats of a host."""
    async with world.client.subscribed(f"host.{host}.heartbeat") as events, asyncio.timeout(30):
        for _ in range(count):
            await anext(events)
