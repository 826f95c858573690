"""What accepting an attach or a detach has to check, and how a volume is claimed for it.

A volume is claimed before its instance's transition commits. A claim that the instance does not bear out is taken away:
by who made it, when the transition was lost, and by who comes next, if it was left by an api that died. Why that is
safe: first the instance's revision is raised, so that no transition that was made up before can still commit.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4, uuid5

from virtfleet_common import moves, volumes
from virtfleet_common.errors import BadRequest, Conflict, NotFound, Refused
from virtfleet_common.records import ActionState, Instance
from virtfleet_common.records.volume import Attachment, Volume
from virtfleet_common.store import Expect, Mismatch, Store

from virtfleet_api.begin import NAMESPACE

_PATIENCE = timedelta(seconds=10)
"""An attach commits within so long, or its api has died."""


async def begun(
    store: Store, instance: Instance, action: ActionState, args: Mapping[str, Any]
) -> tuple[ActionState, moves.Turn]:
    """The action of an attach, with the volume claimed for it. Raises NotFound, BadRequest, Conflict."""
    volume = await store.volumes.get(args["volume_id"])
    if volume is None or volume.project_id != instance.project_id:
        raise NotFound(f"Volume {args['volume_id']} could not be found.", rule="volume_exists")
    id_ = str(uuid5(NAMESPACE, f"{action.id}/attachment"))
    has = volume.attachment
    if has is not None and has.id != id_ and not await free_if_left(store, volume, action.started_at):
        raise _refusal(volume)
    device = volumes.device_of(volume, id_, _device_name(instance, args.get("device")))
    claim = Attachment(
        id=id_, instance_id=instance.id, host=instance.host, device=device["target"], ticket=uuid4().hex,
        reserved_at=action.started_at,
    )  # fmt: skip
    if not await store.volumes.claim(volume.id, claim):
        volume = await store.volumes.get(volume.id) or volume
        if volume.attachment is not None and volume.attachment.id == id_:
            raise Mismatch("action", action.id, instance)  # a copy of this command has done it all meanwhile
        raise _refusal(volume)
    step = action.step.model_copy(update={"args": {"device": device, "ticket": claim.ticket}})
    return action.model_copy(update={"step": step}), moves.Turn({})


def _refusal(volume: Volume) -> Refused:
    """Nova's 400 for a volume in use; 409 for one that another attach was just faster to get."""
    has = volume.attachment
    if has is None or has.attached_at is None:
        return Conflict(f"Volume {volume.id} is being attached by another request.", rule="volume_one_attachment")
    return BadRequest(
        f"Invalid volume: Volume {volume.id} status must be available to attach, but the current status is "
        f"{volume.status}: instance {has.instance_id} has it.",
        rule="volume_available",
    )


async def free_if_left(store: Store, volume: Volume, now: datetime) -> bool:
    """Take the claim on a volume away if an api that died has left it; False if it stays."""
    has = volume.attachment
    is_old = has is not None and has.attached_at is None and now - has.reserved_at > _PATIENCE
    return has is not None and is_old and await _take_away(store, volume.id, has, has.ticket)


async def dropped(store: Store, action: ActionState) -> None:
    """The transition of an attach was lost: its claim goes, unless a copy of the same command won with it."""
    device, ticket = action.step.args["device"], action.step.args["ticket"]
    volume = await store.volumes.get(device["id"])
    has = volume.attachment if volume else None
    if has is not None and has.id == device["attachment_id"]:
        await _take_away(store, device["id"], has, ticket)


async def _take_away(store: Store, volume_id: str, has: Attachment, ticket: str) -> bool:
    """Take a claim away that its instance does not bear out; False if it does, or nobody can tell just now."""
    instance = await store.instances.get(has.instance_id)
    if instance is not None:
        if volumes.is_held(instance, has.id):
            return False
        try:
            await store.instances.transition(instance.id, expect=Expect(rev=instance.rev))
        except Mismatch:
            return False
    return await store.volumes.release(volume_id, has.id, ticket=ticket)


def ended(instance: Instance, action: ActionState, args: Mapping[str, Any]) -> ActionState:
    """The action of a detach. Raises NotFound if the instance has no such volume."""
    device = attached(instance, args["volume_id"])
    step = action.step.model_copy(update={"args": {"device": dict(device)}})
    return action.model_copy(update={"step": step})


def attached(instance: Instance, volume_id: str) -> volumes.Device:
    """The volume as the instance has it. Raises NotFound."""
    device = volumes.find(instance, volume_id)
    if device is None:
        raise NotFound(f"Instance {instance.id} is not attached to volume {volume_id}", rule="volume_attached")
    return device


def _device_name(instance: Instance, asked: str | None) -> str:
    free = volumes.free_names(instance)
    if not asked:
        return free[0]
    name = asked.removeprefix("/dev/")
    if name not in volumes.DEVICE_NAMES:
        raise BadRequest(f"The supplied device path ({asked}) is invalid.", rule="device_name", hint="As in /dev/vdb.")
    if name not in free:
        raise Conflict(f"The supplied device path ({asked}) is in use.", rule="device_free")
    return name
