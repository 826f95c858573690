"""Volumes through an instance's life: the collection says who has them, whatever happens to the instance."""

import asyncio
from pathlib import Path

import pytest
from virtfleet_common.errors import Refused
from virtfleet_common.messages import (
    AttachVolume,
    Command,
    CommandAccepted,
    ConfirmResize,
    CreateInstance,
    DeleteInstance,
    DetachVolume,
    RebootInstance,
    ResizeInstance,
    RevertResize,
    StopInstance,
)
from virtfleet_common.records import ActionRecord, Instance
from virtfleet_common.records.volume import FileSource, Volume
from virtfleet_common.states import PowerState, VmState

from tests.witness import Chronicle, ended_once, everything_is_delivered, record_is_true
from tests.world import World, polling

pytestmark = pytest.mark.fleet
RBD = {"type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "mon1"}]}


async def do(world: World, command: Command) -> ActionRecord:
    """An action to its end, whatever that is, and what follows from it."""
    accepted = await world.client.command(command)
    record = await world.action(accepted.action_id)
    await everything_is_delivered(world)
    return record


async def holder_of(world: World, volume: Volume) -> tuple[str, str | None, str | None]:
    """What the collection says: the volume's status, its instance, its host."""
    found = await world.stored_volume(volume.id)
    has = found.attachment
    return found.status, has.instance_id if has else None, has.host if has else None


async def test_a_volume_goes_where_its_instance_goes(crowd: World) -> None:
    chronicle = Chronicle(crowd.fleet)
    instance = await crowd.create()
    volume, other = await crowd.volume(instance, **RBD), await crowd.volume(instance, **RBD)
    done = [
        await do(crowd, AttachVolume(instance_id=instance.id, volume_id=volume.id)),
        await do(crowd, AttachVolume(instance_id=instance.id, volume_id=other.id, device="/dev/vdx")),
    ]
    assert await holder_of(crowd, volume) == ("in-use", instance.id, instance.host)
    done.append(await do(crowd, ResizeInstance(instance_id=instance.id, flavor="2")))
    moved = await crowd.instance(instance.id)
    assert moved.host != instance.host
    assert await holder_of(crowd, volume) == ("in-use", instance.id, moved.host)
    done.append(await do(crowd, DetachVolume(instance_id=instance.id, volume_id=other.id)))
    assert await holder_of(crowd, other) == ("available", None, None)
    done.append(await do(crowd, RevertResize(instance_id=instance.id)))
    assert await holder_of(crowd, volume) == ("in-use", instance.id, instance.host)
    done.append(await do(crowd, ResizeInstance(instance_id=instance.id, flavor="2")))
    done.append(await do(crowd, ConfirmResize(instance_id=instance.id)))
    done.append(await do(crowd, StopInstance(instance_id=instance.id)))
    done.append(await do(crowd, RebootInstance(instance_id=instance.id, type="HARD")))
    after = await crowd.instance(instance.id)
    assert [(one["id"], one["target"]) for one in after.block_devices] == [(volume.id, "vdb")]
    assert await holder_of(crowd, volume) == ("in-use", instance.id, after.host)
    done.append(await do(crowd, DeleteInstance(instance_id=instance.id)))
    assert await holder_of(crowd, volume) == ("available", None, None)
    assert {record.result for record in done} == {"Success"}
    await ended_once(crowd, chronicle, {record.id for record in done})
    await record_is_true(crowd)


async def test_of_many_instances_that_want_a_volume_one_gets_it(crowd: World) -> None:
    instances = [await crowd.create() for _ in range(4)]
    volume = await crowd.volume(instances[0], **RBD)
    commands = [AttachVolume(instance_id=one.id, volume_id=volume.id) for one in instances]
    answers = await asyncio.gather(*(crowd.client.command(one) for one in commands), return_exceptions=True)
    accepted = [one for one in answers if isinstance(one, CommandAccepted)]
    refused = [one.rule for one in answers if isinstance(one, Refused)]
    assert len(accepted) == 1
    assert set(refused) <= {"volume_one_attachment", "volume_available"}
    assert len(refused) == 3
    await crowd.action(accepted[0].action_id)
    await everything_is_delivered(crowd)
    having = [one.id for one in instances if (await crowd.instance(one.id)).block_devices]
    assert having == list(accepted[0].instance_ids)
    assert (await holder_of(crowd, volume))[:2] == ("in-use", having[0])


async def test_an_attach_that_cannot_be_leaves_the_guest_as_it_was_and_the_volume_free(simulation: World) -> None:
    instance = await simulation.create()
    volume = await simulation.volume(instance, **RBD)
    simulation.arm("attach_volume.middle", "raise")
    failed = await do(simulation, AttachVolume(instance_id=instance.id, volume_id=volume.id))
    after = await simulation.instance(instance.id)
    assert (failed.result, after.vm_state, list(after.block_devices)) == ("Error", VmState.ACTIVE, [])
    assert await holder_of(simulation, volume) == ("available", None, None)
    again = await do(simulation, AttachVolume(instance_id=instance.id, volume_id=volume.id))
    assert again.result == "Success"


# Real guests


async def booted(world: World, times: int, instance_id: str) -> None:
    """The guest's own console has said so often that it is ready."""
    async for _ in polling("the guest to be ready", every=0.2):
        answer = await world.act(instance_id, {"os-getConsoleOutput": {}})
        if answer.json()["output"].count("virtfleet-guest: ready") >= times:
            return


def file_of(volume: Volume) -> Path:
    """Where the volume's data lies."""
    assert isinstance(volume.source, FileSource)
    return Path(volume.source.path)


def has_open(world: World, instance: Instance, volume: Volume) -> bool:
    """Whether the guest has the volume's file open."""
    (guest,) = world.guests(instance.id).values()
    return str(file_of(volume)) in {file.path for file in guest.open_files()}


@pytest.mark.qemu
async def test_a_running_guest_gets_a_volume_keeps_it_across_a_hard_reboot_and_gives_it_back(pair: World) -> None:
    accepted = await pair.client.command(CreateInstance(name="tiny", flavor="m1.tiny", image="tiny"))
    await pair.action(accepted.action_id)
    instance = await pair.instance(accepted.instance_ids[0])
    await booted(pair, 1, instance.id)
    volume = await pair.volume(instance)
    path = f"/v2.1/servers/{instance.id}/os-volume_attachments"
    attach = await pair.ask("POST", path, {"volumeAttachment": {"volumeId": volume.id}})
    assert (await pair.action(attach.headers["x-openstack-request-id"])).result == "Success"
    assert has_open(pair, instance, volume)
    await do(pair, RebootInstance(instance_id=instance.id, type="HARD"))
    await booted(pair, 2, instance.id)
    assert has_open(pair, instance, volume)
    detach = await pair.ask("DELETE", f"{path}/{volume.id}")
    assert (await pair.action(detach.headers["x-openstack-request-id"])).result == "Success"
    assert not has_open(pair, instance, volume)
    after = await pair.instance(instance.id)
    assert (after.vm_state, after.power_state) == (VmState.ACTIVE, PowerState.RUNNING)


@pytest.mark.qemu
async def test_a_volume_that_is_gone_is_left_behind_by_a_hard_reboot(pair: World) -> None:
    instance = await pair.create()
    volume = await pair.volume(instance)
    await do(pair, AttachVolume(instance_id=instance.id, volume_id=volume.id))
    await asyncio.to_thread(file_of(volume).unlink)
    for _ in range(2):
        assert (await do(pair, RebootInstance(instance_id=instance.id, type="HARD"))).result == "Success"
    after = await pair.instance(instance.id)
    assert [(one["id"], one["detached"]) for one in after.block_devices] == [(volume.id, "lost")]
    assert (after.vm_state, await holder_of(pair, volume)) == (VmState.ACTIVE, ("available", None, None))
    assert (await pair.ask("GET", f"/v2.1/servers/{after.id}/os-volume_attachments")).json()["volumeAttachments"] == []


@pytest.mark.qemu
async def test_a_volume_moves_with_a_real_guest(pair: World) -> None:
    instance = await pair.create()
    volume = await pair.volume(instance)
    await do(pair, AttachVolume(instance_id=instance.id, volume_id=volume.id))
    assert (await do(pair, ResizeInstance(instance_id=instance.id, flavor="2"))).result == "Success"
    moved = await pair.instance(instance.id)
    assert moved.host != instance.host
    assert has_open(pair, moved, volume)
    assert await holder_of(pair, volume) == ("in-use", instance.id, moved.host)


@pytest.mark.qemu
async def test_a_destination_that_lacks_a_volume_refuses_before_the_guest_is_stopped(pair: World) -> None:
    instance = await pair.create()
    volume = await pair.volume(instance)
    await do(pair, AttachVolume(instance_id=instance.id, volume_id=volume.id))
    await asyncio.to_thread(file_of(volume).unlink)  # the guest has it open, and needs no name for it
    before = set(pair.guests(instance.id))
    refused = await do(pair, ResizeInstance(instance_id=instance.id, flavor="2"))
    (tried,) = [one for one in refused.events.values() if one.event == "compute_prep_resize"]
    assert "this host has no volume at" in (tried.details or "")
    after = await pair.instance(instance.id)
    assert (after.host, after.vm_state) == (instance.host, VmState.ACTIVE)
    assert set(pair.guests(instance.id)) == before
    assert await holder_of(pair, volume) == ("in-use", instance.id, instance.host)
