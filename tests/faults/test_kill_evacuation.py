"""What the fleet is for: a host dies, and whatever dies with it or after it, its guests run elsewhere, once each."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from virtfleet_common.messages import AttachVolume
from virtfleet_common.records import Instance
from virtfleet_common.records.volume import FileSource, Volume
from virtfleet_common.states import HostState, PowerState, VmState
from virtfleet_common.store import MigrationQuery
from virtfleet_local.fleet import LocalFleet
from virtfleet_local.hosts import shared_folder

from tests.conftest import brittle
from tests.faults.test_kill_move import qemu_io
from tests.witness import everything_is_delivered
from tests.world import World, polling

pytestmark = [pytest.mark.qemu, pytest.mark.fleet]
SWIFT = {
    "VIRTFLEET_HEARTBEAT_INTERVAL": "0.5",
    "VIRTFLEET_HOST_UNKNOWN_AFTER": "1.5",
    "VIRTFLEET_HOST_DOWN_AFTER": "3",
    "VIRTFLEET_LIVENESS_INTERVAL": "0.25",
    "VIRTFLEET_AUTO_EVACUATE": "all",
    "VIRTFLEET_EVACUATION_RETRY": "2",
    "VIRTFLEET_AUTO_LOSS_LIMIT": "1000",
    "VIRTFLEET_CLEANUP_INTERVAL": "1",
    "VIRTFLEET_ISOLATION_AFTER": "1.5",
}
SCHEDULERS_POINTS = ["before_claim", "after_claim", "middle", "before_finish"]
SHELTERS_POINTS = ["before_claim", "after_claim", "middle", "switched", "spawning", "before_finish"]
POINTS = [f"select_shelter.{point}" for point in SCHEDULERS_POINTS] + [f"shelter.{point}" for point in SHELTERS_POINTS]

KEEPERS_POINTS = [f"power-sync.{point}" for point in ("after_commit", "after_send", "before_mark")]


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Three QEMU hosts on shared storage, soon lost and soon evacuated."""
    with brittle(tmp_path_factory.mktemp("harbour"), 3, "qemu", shared_storage=True, **SWIFT) as fleet:
        yield fleet


@pytest.fixture
async def world(harbour: LocalFleet) -> AsyncIterator[World]:
    """The fleet as a program sees it, all its hosts up."""
    async with World(harbour) as found:
        await all_are_up(found)
        yield found


async def all_are_up(world: World) -> None:
    async for _ in polling("every host to be up"):
        hosts = await world.store.hosts.find()
        if all(host.state is HostState.UP for host in hosts):
            return


async def a_marked_guest(world: World) -> Instance:
    """A running guest with something on its disk that it would miss."""
    instance = await world.create()
    await qemu_io(disk_of(world, instance), "write -P 0xa5 5M 64k")
    return instance


def disk_of(world: World, instance: Instance) -> Path:
    return shared_folder(world.fleet.data) / instance.id / "disk"


async def cut_power(world: World, host: str | None) -> None:
    """The host and its guests die at once."""
    await asyncio.to_thread(world.fleet.kill_host, str(host))


async def switch_on(world: World, host: str | None) -> None:
    """The machine boots; whether its agent is let in yet is another matter."""
    await asyncio.to_thread(world.fleet.start_service, str(host), wait=False)


async def lives_elsewhere(world: World, before: Instance) -> Instance:
    """Wait until the guest's evacuation has ended well."""
    async for _ in polling(f"{before.id} to live elsewhere"):
        now = await world.instance(before.id)
        if now.host != before.host and now.action is None:
            return now
    raise AssertionError


async def all_is_well(world: World, before: Instance) -> Instance:
    """The guest runs exactly once, on the host of its record, with its data; no stale copy, claim or file is left."""
    await all_are_up(world)
    await everything_is_delivered(world)
    async for _ in polling("what is owed to be cleaned up"):
        if not await world.store.cleanups.find() and await books_balance(world, before.id):
            break
    now = await world.instance(before.id)
    assert (now.vm_state, now.power_state, now.move) == (VmState.ACTIVE, PowerState.RUNNING, None), now.fault
    assert world.places(before.id) == [now.host]
    assert "Pattern verification failed" not in await qemu_io(disk_of(world, now), "read -P 0xa5 5M 64k")
    assert [path.name for path in shared_folder(world.fleet.data).glob(f"*{before.id}*")] == [before.id]
    return now


async def books_balance(world: World, instance_id: str) -> bool:
    """Whether the guest's host holds its place, and nobody else does."""
    instance = await world.instance(instance_id)
    held = {host: (await world.host(host)).allocations for host in world.fleet.file.hosts}
    holders = [host for host, allocations in held.items() if instance_id in {one.instance_id for one in allocations}]
    return holders == [instance.host]


async def statuses(world: World, instance_id: str) -> list[str]:
    """Of its migrations, newest first."""
    await everything_is_delivered(world)
    found = await world.store.migrations.find_page(MigrationQuery(instance_id=instance_id))
    assert {one.type for one in found} == {"evacuation"}
    return [one.status for one in found]


async def test_a_guest_of_a_host_that_dies_runs_elsewhere_with_its_data(world: World) -> None:
    before = await a_marked_guest(world)
    await cut_power(world, before.host)
    moved = await lives_elsewhere(world, before)
    assert moved.epoch == before.epoch + 1
    assert await statuses(world, before.id) == ["done"]
    await switch_on(world, before.host)
    assert (await all_is_well(world, before)).host == moved.host
    assert await statuses(world, before.id) == ["completed"]


@pytest.mark.parametrize("point", [*POINTS, *KEEPERS_POINTS])
async def test_an_evacuation_ends_although_its_executor_died(world: World, point: str) -> None:
    before = await a_marked_guest(world)
    world.arm(point)
    await cut_power(world, before.host)
    executor = await dead_of(world, point, before)
    world.fleet.start_service(executor, wait=False)
    await lives_elsewhere(world, before)
    await switch_on(world, before.host)
    await all_is_well(world, before)


async def dead_of(world: World, point: str, before: Instance) -> str:
    """Wait until a failure was met, and say who died of it: the scheduler, power_sync, or a host that is not the lost
    one."""
    single = {"select_shelter": "scheduler", "power-sync": "power-sync"}.get(point.partition(".")[0])
    names = {single} if single else set(world.fleet.file.hosts) - {before.host}
    async for _ in polling(f"somebody to die at {point}"):
        died = [name for name in names if not world.fleet.process(name).is_running()]
        if died and not (world.failpoints / point).exists():
            return died[0]
    raise AssertionError


@pytest.mark.parametrize("point", [*POINTS, *KEEPERS_POINTS])
async def test_the_source_may_return_at_any_step_of_the_evacuation(world: World, point: str) -> None:
    before = await a_marked_guest(world)
    world.arm(point, "hang")
    await cut_power(world, before.host)
    await world.taken(point)
    said = log_of(world, before.host).count("host.kept_out")
    await switch_on(world, before.host)
    async for _ in polling("the source to be at the door, or to be let in because the evacuation has ended"):
        # A destination that hangs is lost too: then its guest goes on elsewhere, and it returns when it is released.
        is_kept_out = log_of(world, before.host).count("host.kept_out") > said
        if is_kept_out or (await world.host(str(before.host))).state is HostState.UP:
            break
    world.release(point)
    async for _ in polling("the guest to live somewhere"):
        # A destination that hung is lost: if the source is let in before another one is found, it has its guest again.
        now = await world.instance(before.id)
        if now.action is None and now.move is None and world.places(before.id) == [now.host]:
            break
    await all_is_well(world, before)


def log_of(world: World, service: str | None) -> str:
    return (world.fleet.data / "services" / f"{service}.log").read_text()


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("shelter")])
async def test_a_guest_whose_destination_dies_too_is_evacuated_again(world: World, point: str) -> None:
    before = await a_marked_guest(world)
    world.arm(point)
    await cut_power(world, before.host)
    destination = await dead_of(world, point, before)
    await cut_power(world, destination)  # its guests too
    moved = await lives_elsewhere(world, before)
    assert moved.host not in {before.host, destination}
    for host in (before.host, destination):
        await switch_on(world, host)
    await all_is_well(world, before)


# Volumes


async def is_used_by(world: World, volume: Volume, instance: Instance) -> bool:
    """Whether guest, record and collection agree that this instance, where it is now, has the volume."""
    await everything_is_delivered(world)
    now, kept = await world.instance(instance.id), await world.stored_volume(volume.id)
    assert isinstance(volume.source, FileSource)
    (guest,) = world.guests(now.id).values()
    is_open = volume.source.path in {file.path for file in guest.open_files()}
    is_listed = [device["id"] for device in now.block_devices] == [volume.id]
    held = kept.attachment
    return is_open and is_listed and held is not None and (held.instance_id, held.host) == (now.id, now.host)


@pytest.mark.parametrize("point", [None, "shelter.switched", "shelter.spawning"])
async def test_a_volume_comes_along(world: World, point: str | None) -> None:
    before = await a_marked_guest(world)
    volume = await world.volume(before)
    attach = await world.client.command(AttachVolume(instance_id=before.id, volume_id=volume.id))
    assert (await world.action(attach.action_id)).result == "Success"
    if point:
        world.arm(point)
    await cut_power(world, before.host)
    if point:
        world.fleet.start_service(await dead_of(world, point, before), wait=False)
    await lives_elsewhere(world, before)
    assert await is_used_by(world, volume, before)
    await switch_on(world, before.host)
    await all_is_well(world, before)
    assert await is_used_by(world, volume, before)


async def test_an_attach_in_the_middle_of_which_the_host_is_lost_is_no_secret(world: World) -> None:
    before = await a_marked_guest(world)
    volume = await world.volume(before)
    world.arm("attach_volume.middle")
    command = AttachVolume(instance_id=before.id, volume_id=volume.id)
    attach = await world.death_of(str(before.host), lambda: world.client.command(command))
    await cut_power(world, before.host)
    assert (await world.action(attach.action_id)).result == "Error"
    await lives_elsewhere(world, before)
    assert await is_used_by(world, volume, before), "nobody can tell that it had not, so that nobody else gets it"
    await switch_on(world, before.host)
    await all_is_well(world, before)
