"""G1 to G5 for moves: who executes a step is killed at its worst moments, and the guest exists once, with its data."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from virtfleet_common.messages import Command, ConfirmResize, ResizeInstance, RevertResize
from virtfleet_common.records import Instance
from virtfleet_common.states import PowerState, VmState
from virtfleet_local.fleet import LocalFleet

from tests.conftest import brittle
from tests.world import World, everything_is_delivered, polling

POINTS = ["before_claim", "after_claim", "middle", "before_finish"]
SOURCE_STEPS = ("move", "finish_revert")
pytestmark = [pytest.mark.qemu, pytest.mark.fleet]


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two QEMU hosts: where a guest goes from the one is known."""
    quick = {"VIRTFLEET_CLEANUP_INTERVAL": "1", "VIRTFLEET_TRANSFER_STALL": "5"}
    with brittle(tmp_path_factory.mktemp("movers"), 2, "qemu", **quick) as fleet:
        yield fleet


@pytest.fixture
async def movers(two_hosts: LocalFleet) -> AsyncIterator[World]:
    """The two hosts as a program sees them."""
    async with World(two_hosts) as found:
        yield found


async def a_marked_guest(world: World) -> Instance:
    """A running guest with something on its disk that it would miss."""
    instance = await world.create()
    await qemu_io(disk_of(world, instance), "write -P 0xa5 5M 64k")
    return instance


async def qemu_io(disk: Path, command: str) -> str:
    """What qemu-io says; the disk is a running guest's, which does not use it."""
    options = f"driver=qcow2,file.driver=file,file.filename={disk},file.locking=off"
    return await run("qemu-io", "--image-opts", options, "-c", command)


async def run(*command: str) -> str:
    """What a program prints; it must end well."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def disk_of(world: World, instance: Instance) -> Path:
    """The disk of a guest, on the host of its record."""
    return world.fleet.data / "hosts" / str(instance.host) / "instances" / instance.id / "disk"


async def suffer(world: World, executor: str, point: str, command: Command, instance_id: str) -> str:
    """Send a command, let the executor die at a point, start it again, and read how the action ended."""
    world.arm(point)
    async with world.story() as story:
        accepted = await world.death_of(executor, lambda: world.client.command(command))
        world.fleet.start_service(executor, wait=False)
        await story.ends(accepted.action_id)
        await story.reads_on(instance_id)
        (ending,) = story.endings(accepted.action_id)
    return ending


async def decide(world: World, command: Command, instance_id: str) -> None:
    """An action that nobody disturbs."""
    async with world.story() as story:
        accepted = await world.client.command(command)
        await story.ends(accepted.action_id)


async def all_is_clean(world: World, instance_id: str) -> Instance:
    """The guest exists once, with its data; no host holds anything else of it, on disk or in its books."""
    async for _ in polling("the leftovers to be cleaned and their places given back"):
        if not await world.store.cleanups.find() and await books_balance(world, instance_id):
            break
    await everything_is_delivered(world)
    instance = await world.instance(instance_id)
    assert (instance.vm_state, instance.power_state, instance.move) == (VmState.ACTIVE, PowerState.RUNNING, None)
    assert len(world.guests(instance_id)) == 1
    assert "Pattern verification failed" not in await qemu_io(disk_of(world, instance), "read -P 0xa5 5M 64k")
    left = [path.name for path in world.fleet.data.glob(f"hosts/*/instances/*{instance_id}*")]
    assert left == [instance_id]
    return instance


async def books_balance(world: World, instance_id: str) -> bool:
    """Whether the guest's host holds its place, at its size, and nobody anything else."""
    instance = await world.instance(instance_id)
    held = {
        name: [(one.instance_id, one.ram_mb) for one in (await world.host(name)).allocations]
        for name in world.fleet.file.hosts
    }
    wanted = [(instance_id, instance.flavor.ram_mb)]
    return all(held[name] == (wanted if name == instance.host else []) for name in held)


def executor_of(step: str, source: str) -> str:
    """Who executes a step of a guest's move away from `source`."""
    if step == "select_destination":
        return "scheduler"
    other = {"host-1": "host-2", "host-2": "host-1"}[source]
    return source if step in SOURCE_STEPS else other


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", ["select_destination", "prepare", "move", "finish"])
async def test_a_resize_ends_although_its_executor_died(movers: World, step: str, point: str) -> None:
    instance = await a_marked_guest(movers)
    source = str(instance.host)
    command = ResizeInstance(instance_id=instance.id, flavor="2")
    ending = await suffer(movers, executor_of(step, source), f"{step}.{point}", command, instance.id)
    moved = await movers.instance(instance.id)
    assert (ending, moved.vm_state, moved.flavor.id) == ("end", VmState.RESIZED, "2")
    assert moved.host != source
    assert len(movers.guests(instance.id)) == 1
    await decide(movers, ConfirmResize(instance_id=instance.id), instance.id)
    settled = await all_is_clean(movers, instance.id)
    assert (settled.flavor.id, settled.host) == ("2", moved.host)


async def test_a_resize_ends_although_the_source_died_in_the_middle_of_the_copy(movers: World) -> None:
    instance = await a_marked_guest(movers)
    await qemu_io(disk_of(movers, instance), "write -P 0x77 64M 256M")
    source = str(instance.host)
    command = ResizeInstance(instance_id=instance.id, flavor="2")
    assert await suffer(movers, source, "send_disk.middle", command, instance.id) == "end"
    await decide(movers, ConfirmResize(instance_id=instance.id), instance.id)
    assert (await all_is_clean(movers, instance.id)).host != source


@pytest.mark.parametrize("point", ["cleanup.before", "cleanup.middle"])
async def test_the_source_is_cleaned_after_a_confirm_although_it_died(movers: World, point: str) -> None:
    instance = await a_marked_guest(movers)
    source = str(instance.host)
    await decide(movers, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    ending = await suffer(movers, source, point, ConfirmResize(instance_id=instance.id), instance.id)
    assert ending == "end"
    assert (await all_is_clean(movers, instance.id)).host != source


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", ["revert", "finish_revert"])
async def test_a_revert_ends_although_its_executor_died(movers: World, step: str, point: str) -> None:
    instance = await a_marked_guest(movers)
    source = str(instance.host)
    await decide(movers, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    command = RevertResize(instance_id=instance.id)
    ending = await suffer(movers, executor_of(step, source), f"{step}.{point}", command, instance.id)
    assert ending == "end"
    back = await all_is_clean(movers, instance.id)
    assert (back.host, back.flavor.id) == (source, "1")


async def stays_as_it_was(world: World, instance: Instance) -> str:
    """A resize that fails: the guest runs on its source with its data, no trace is left. Returns the fault's code."""
    async with world.story() as story:
        accepted = await world.client.command(ResizeInstance(instance_id=instance.id, flavor="2"))
        await story.ends(accepted.action_id)
        assert story.endings(accepted.action_id) == ["error"]
    after = await all_is_clean(world, instance.id)
    assert (after.host, after.flavor.id, after.task_state) == (instance.host, "1", None)
    (migration, *_) = await world.store.migrations.find({"instance_id": instance.id})
    assert migration.status == "error"
    assert after.fault is not None
    return str(after.fault.facts.get("code") or after.fault.code)


async def test_a_transfer_that_breaks_leaves_the_guest_running_on_its_source(movers: World) -> None:
    instance = await a_marked_guest(movers)
    movers.arm("hypervisor.send_disk", "raise")
    await stays_as_it_was(movers, instance)


async def test_a_full_disk_on_the_destination_leaves_the_guest_running_on_its_source(movers: World) -> None:
    instance = await a_marked_guest(movers)
    await qemu_io(disk_of(movers, instance), "write -P 0x77 64M 64M")
    other = {"host-1": "host-2", "host-2": "host-1"}[str(instance.host)]
    folder = movers.fleet.data / "hosts" / other / "instances"
    folder.mkdir(parents=True, exist_ok=True)
    await run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder))
    try:
        assert await stays_as_it_was(movers, instance) == "destination_full"
    finally:
        await run("umount", "--lazy", str(folder))
