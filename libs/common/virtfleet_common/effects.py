"""What has to happen outside an instance's document because of a transition, committed with it in its `outbox`.

Every effect is idempotent, and effects of different transitions commute, so that whoever finds one may carry it out:
the writer at once, or `power_sync` after a crash.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

from virtfleet_common.records import Cleanup

Effect = dict[str, Any]
"""`{"id", "kind", ...}`; the store adds `at`, the time of the commit."""


def _effect(kind: str, **content: Any) -> Effect:
    return {"id": uuid4().hex, "kind": kind, **content}


def event(key: str, data: Mapping[str, Any], *, trace_id: str | None) -> Effect:
    """Publish an event on `virtfleet.events`; the effect's id is the event's id, so a second copy can be told."""
    return _effect("event", key=key, data=dict(data), trace_id=trace_id)


def record(action_id: str, fields: Mapping[str, Any]) -> Effect:
    """Write `fields` (dotted paths) of an action's history; made if it is not there yet."""
    return _effect("record", action_id=action_id, fields=dict(fields))


def release(instance_id: str, claim: str | None = None) -> Effect:
    """Give back one claim of an instance, or all of them (`claim` None: the instance is gone for good)."""
    return _effect("release", instance_id=instance_id, claim=claim)


def migration(migration_id: str, fields: Mapping[str, Any], rank: int) -> Effect:
    """Write `fields` of a migration, unless something of a higher rank was written before."""
    return _effect("migration", migration_id=migration_id, fields=dict(fields), rank=rank)


def cleanup(owed: Cleanup) -> Effect:
    """A host has something to clean up, now or when it is back."""
    return _effect("cleanup", cleanup=owed.document())


def volume_held(volume_id: str, attachment: Mapping[str, Any]) -> Effect:
    """A volume is attached as said, if the attachment of that id is still its own; see `Volumes.settle`."""
    return _effect("volume_held", volume_id=volume_id, attachment=dict(attachment))


def volume_released(volume_id: str, attachment_id: str) -> Effect:
    """An attachment is over; its id never comes back."""
    return _effect("volume_released", volume_id=volume_id, attachment_id=attachment_id)


def volumes_released(instance_id: str) -> Effect:
    """The instance is gone for good: whatever volumes it had are free."""
    return _effect("volumes_released", instance_id=instance_id)


def quota_release(project_id: str, instance_id: str) -> Effect:
    """The instance is gone for good: its project no longer uses anything for it."""
    return _effect("quota", project_id=project_id, instance_id=instance_id, amounts=None, rank=0)


def quota_set(project_id: str, instance_id: str, amounts: Mapping[str, int], *, rank: int) -> Effect:
    """The instance counts exactly `amounts` from now on; what its moves held for their time is given back.

    `rank` is the instance's `rev` as this transition writes it (the rev before, plus one): the older of two, arriving
    late, changes nothing. See `virtfleet_common.quota`, which makes this from an instance.
    """
    return _effect("quota", project_id=project_id, instance_id=instance_id, amounts=dict(amounts), rank=rank)


def host_failed(host: str, attempt: str) -> Effect:
    """A guest could not be built on a host: placement prefers others for a while. `attempt` counts once."""
    return _effect("host_failed", host=host, attempt=attempt)


def opened(action_id: str, *, instance_id: str, action: str, user_id: str, project_id: str, start: datetime) -> Effect:
    """The history of an accepted action begins."""
    fields = {
        "instance_id": instance_id, "action": action, "user_id": user_id, "project_id": project_id, "start": start,
    }  # fmt: skip
    return record(action_id, fields)


def closed(action_id: str, *, at: datetime, result: str, message: str | None = None) -> Effect:
    """The action ended: `result` is Success, Error or superseded."""
    return record(action_id, {"finish": at, "result": result, "message": message})


def step_started(action_id: str, seq: int, *, name: str, host: str | None, at: datetime) -> Effect:
    """An executor took the `seq`-th step of the action."""
    return record(action_id, {f"events.{seq}.event": name, f"events.{seq}.start": at, f"events.{seq}.host": host})


def step_finished(
    action_id: str, seq: int, *, at: datetime, result: str, details: str | None = None, traceback: str | None = None
) -> Effect:
    """The `seq`-th step of the action ended."""
    fields: dict[str, Any] = {f"events.{seq}.finish": at, f"events.{seq}.result": result}
    if details is not None:
        fields[f"events.{seq}.details"] = details
    if traceback is not None:
        fields[f"events.{seq}.traceback"] = traceback
    return record(action_id, fields)


def noted(action_id: str, seq: int, *, name: str, at: datetime, details: str, host: str | None) -> Effect:
    """Something worth telling happened within a step (a soft reboot fell back, a volume was lost)."""
    note = {"event": name, "start": at, "finish": at, "result": "Success", "details": details, "host": host}
    return record(action_id, {f"events.{seq}-{name}": note})
