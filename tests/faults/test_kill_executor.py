"""G1 and G2: the executor of a step is killed at its worst moments, and the action ends as if nothing had happened."""

from typing import Literal

import pytest
from virtfleet_common.messages import (
    AttachVolume,
    Command,
    CreateInstance,
    DeleteInstance,
    DetachVolume,
    InstanceCommand,
    RebootInstance,
    StartInstance,
    StopInstance,
)
from virtfleet_common.records.volume import FileSource, Volume
from virtfleet_common.states import PowerState, VmState

from tests.witness import everything_is_delivered
from tests.world import World

POINTS = ["before_claim", "after_claim", "middle", "before_finish"]
pytestmark = [pytest.mark.qemu, pytest.mark.fleet]


async def suffer(world: World, step: str, point: str, command: Command) -> tuple[str, str, set[int]]:
    """Send a command, let the executor die at a point of the step, start it again, and read how the action ended.

    Returns the instance's id, how the action ended, and the guests that ran while the executor was dead.
    """
    executor = "scheduler" if step == "select" else "host-1"
    world.arm(f"{step}.{point}")
    async with world.story() as story:
        accepted = await world.death_of(executor, lambda: world.client.command(command))
        instance_id = accepted.instance_ids[0]
        between = set(world.guests(instance_id))
        world.fleet.start_service(executor, wait=False)
        await story.ends(accepted.action_id)
        if not isinstance(command, DeleteInstance):
            await story.reads_on(instance_id)
        (ending,) = story.endings(accepted.action_id)
    assert (await world.action(accepted.action_id)).result == "Success"
    return instance_id, ending, between


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", ["select", "create"])
async def test_a_guest_is_created_once_although_the_executor_died(world: World, step: str, point: str) -> None:
    before = await world.host()
    id_, ending, between = await suffer(world, step, point, CreateInstance(name="born", flavor="m1.tiny"))
    instance, host = await world.instance(id_), await world.host()
    assert (ending, instance.vm_state, instance.power_state) == ("end", VmState.ACTIVE, PowerState.RUNNING)
    assert len(world.guests(id_)) == 1
    assert [held.instance_id for held in host.allocations].count(id_) == 1
    assert host.used.ram_mb == before.used.ram_mb + instance.flavor.ram_mb
    if (step, point) == ("create", "before_finish"):
        assert set(world.guests(id_)) == between, "the guest that had been created was started again"


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["HARD", "SOFT"])
async def test_a_reboot_happens_once_although_the_agent_died(
    world: World, kind: Literal["HARD", "SOFT"], point: str
) -> None:
    instance = await world.create()
    before = set(world.guests(instance.id))
    command = RebootInstance(instance_id=instance.id, type=kind)
    _, ending, between = await suffer(world, f"reboot_{kind.lower()}", point, command)
    after, instance = set(world.guests(instance.id)), await world.instance(instance.id)
    assert (ending, instance.vm_state, instance.power_state) == ("end", VmState.ACTIVE, PowerState.RUNNING)
    assert len(after) == 1
    assert not after & before, "the guest was not rebooted"
    if point == "before_finish":
        assert after == between, "the guest that had been rebooted was rebooted again"


@pytest.mark.parametrize("point", POINTS)
async def test_a_stop_ends_although_the_agent_died(world: World, point: str) -> None:
    instance = await world.create()
    _, ending, _ = await suffer(world, "stop", point, StopInstance(instance_id=instance.id))
    instance = await world.instance(instance.id)
    assert (ending, instance.vm_state, instance.power_state) == ("end", VmState.STOPPED, PowerState.SHUTDOWN)
    assert not world.guests(instance.id)


@pytest.mark.parametrize("point", POINTS)
async def test_a_delete_leaves_nothing_although_the_agent_died(world: World, point: str) -> None:
    instance = await world.create()
    before = await world.host()
    _, ending, _ = await suffer(world, "delete", point, DeleteInstance(instance_id=instance.id))
    await everything_is_delivered(world)
    gone, host = await world.instance(instance.id), await world.host()
    assert (ending, gone.vm_state) == ("end", VmState.DELETED)
    assert not world.guests(instance.id)
    assert not list(world.fleet.data.glob(f"hosts/*/instances/{instance.id}"))
    assert host.used.ram_mb == before.used.ram_mb - instance.flavor.ram_mb
    assert instance.id not in [held.instance_id for held in host.allocations]


async def ends(world: World, command: InstanceCommand) -> None:
    """An action to its good end."""
    accepted = await world.client.command(command)
    assert (await world.action(accepted.action_id)).result == "Success"


async def readers(world: World, instance_id: str, volume: Volume) -> int:
    """How many guests have the volume's file open."""
    path = volume.source.path if isinstance(volume.source, FileSource) else ""
    guests = world.guests(instance_id).values()
    return sum(path in {file.path for file in guest.open_files()} for guest in guests)


@pytest.mark.parametrize("point", POINTS)
async def test_a_volume_is_attached_once_although_the_agent_died(world: World, point: str) -> None:
    instance = await world.create()
    volume = await world.volume(instance)
    command = AttachVolume(instance_id=instance.id, volume_id=volume.id)
    _, ending, _ = await suffer(world, "attach_volume", point, command)
    await everything_is_delivered(world)
    after, volume = await world.instance(instance.id), await world.stored_volume(volume.id)
    assert (ending, after.vm_state, after.power_state) == ("end", VmState.ACTIVE, PowerState.RUNNING)
    assert [(one["id"], one["target"]) for one in after.block_devices] == [(volume.id, "vdb")]
    assert volume.attachment is not None
    assert (volume.status, volume.attachment.instance_id, volume.attachment.host) == ("in-use", instance.id, "host-1")
    assert await readers(world, instance.id, volume) == 1


@pytest.mark.parametrize("point", POINTS)
async def test_a_volume_is_free_after_its_detach_although_the_agent_died(world: World, point: str) -> None:
    instance = await world.create()
    volume = await world.volume(instance)
    await ends(world, AttachVolume(instance_id=instance.id, volume_id=volume.id))
    await ends(world, StopInstance(instance_id=instance.id))  # it has no operating system that could let go
    command = DetachVolume(instance_id=instance.id, volume_id=volume.id)
    _, ending, _ = await suffer(world, "detach_volume", point, command)
    await everything_is_delivered(world)
    assert (ending, list((await world.instance(instance.id)).block_devices)) == ("end", [])
    assert (await world.stored_volume(volume.id)).status == "available"
    await ends(world, StartInstance(instance_id=instance.id))
    assert await readers(world, instance.id, volume) == 0


@pytest.mark.parametrize("point", ["middle", "before_finish"])
async def test_a_deleted_guest_lets_go_of_its_volume_although_the_agent_died(world: World, point: str) -> None:
    instance = await world.create()
    volume = await world.volume(instance)
    await ends(world, AttachVolume(instance_id=instance.id, volume_id=volume.id))
    await suffer(world, "delete", point, DeleteInstance(instance_id=instance.id))
    await everything_is_delivered(world)
    assert (await world.stored_volume(volume.id)).status == "available"
    assert (world.fleet.data / f"volume-{volume.id}").exists()
