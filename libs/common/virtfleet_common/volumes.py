"""The volumes of an instance, as its record lists them, and what the turns of an attachment write. No I/O.

The instance's `block_devices` say what it has. The collection of volumes says who has each one: it is claimed before an
attach is accepted, and follows the record by effects. So two instances never have one volume, and a claim that the
record does not bear out can be told (`is_held`).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from string import ascii_lowercase
from typing import Any

from virtfleet_common import effects
from virtfleet_common.effects import Effect
from virtfleet_common.records import Instance
from virtfleet_common.records.volume import Attachment, Volume

Device = Mapping[str, Any]
"""A block device of an instance: `id` and `attachment_id` of its volume, `target`, `is_readonly`, and the fields of the
source. `boot_index` 0: the instance boots from it and has no disk of its own. `detached`: why it is there no longer."""
DEVICE_NAMES = [f"vd{one}" for one in ascii_lowercase] + [f"vd{a}{b}" for a in ascii_lowercase for b in ascii_lowercase]
"""Names of virtio disks, in the guest's order. The first is the disk that the instance boots from."""
TAKEN_OUT = "taken_out"
"""The note of an attach that failed and was taken back: the guest surely does not have the volume. Holds the reason."""
_TOLD = ("id", "attachment_id", "target", "is_readonly", "attached_at", "detached")


def present(instance: Instance) -> list[Device]:
    """The block devices that the guest has."""
    return [device for device in instance.block_devices if not device.get("detached")]


def find(instance: Instance, volume_id: str) -> Device | None:
    """The block device that is this volume, if the guest has it."""
    return next((device for device in present(instance) if device.get("id") == volume_id), None)


def told(device: Device) -> dict[str, Any]:
    """As much of a block device as events tell: not where the data lies."""
    return {name: device[name] for name in _TOLD if name in device}


def free_names(instance: Instance) -> list[str]:
    """The device names that a further volume may get, the first one first."""
    taken = {device.get("target") for device in present(instance)} | {DEVICE_NAMES[0]}
    unnamed = sum(1 for device in present(instance) if not device.get("target"))
    return [name for name in DEVICE_NAMES if name not in taken][unnamed:]


def device_of(volume: Volume, attachment_id: str, target: str) -> dict[str, Any]:
    """The block device that a volume becomes."""
    fields = {"id": volume.id, "attachment_id": attachment_id, "target": target, "is_readonly": volume.is_readonly}
    return {**volume.source.model_dump(exclude_none=True), **fields}


def is_held(instance: Instance, attachment_id: str) -> bool:
    """Whether the record bears out an attachment: the guest has the volume, or an attach of it is under way."""
    at_work = instance.action.step.args.get("device", {}) if instance.action else {}
    return any(one.get("attachment_id") == attachment_id for one in (*present(instance), at_work))


def attached(instance: Instance, device: Device, at: datetime) -> tuple[dict[str, Any], list[Effect]]:
    """The guest has the volume: the fields to set, the effects to commit with them."""
    new = {**device, "attached_at": at.isoformat()}
    others = [one for one in instance.block_devices if one.get("id") != device["id"]]
    return {"block_devices": [*others, new]}, [_held(instance, new, instance.host)]


def detached(instance: Instance, device: Device) -> tuple[dict[str, Any], list[Effect]]:
    """The guest has the volume no longer."""
    kept = [one for one in instance.block_devices if one.get("id") != device["id"]]
    return {"block_devices": kept}, released([device])


def released(devices: Sequence[Device]) -> list[Effect]:
    """These volumes are free again."""
    return [effects.volume_released(one["id"], one["attachment_id"]) for one in devices if one.get("attachment_id")]


def moved(instance: Instance, host: str | None) -> list[Effect]:
    """The instance is another host's, and its volumes with it."""
    return [_held(instance, device, host) for device in present(instance) if device.get("attachment_id")]


def given_up(instance: Instance, at: datetime) -> tuple[dict[str, Any], list[Effect]]:
    """An attach ends without success. Where it never began, or was taken back for certain, the volume is free. Else the
    guest may have it: so the record says it has, nobody else gets it, and a detach makes an end of it."""
    action = instance.action
    if action is None:
        return {}, []
    device = action.step.args["device"]
    if action.claimed_by is None or TAKEN_OUT in action.notes:
        return {}, released([device])
    return attached(instance, device, at)


def _held(instance: Instance, device: Device, host: str | None) -> Effect:
    fields = {"instance_id": instance.id, "host": host, "device": device["target"], "rank": instance.rev + 1}
    at = datetime.fromisoformat(device["attached_at"])
    attachment = Attachment(id=device["attachment_id"], reserved_at=at, attached_at=at, **fields)
    return effects.volume_held(device["id"], attachment.document())
