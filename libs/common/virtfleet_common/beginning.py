"""The beginning of an action: what is written of it, and what is told, whoever begins it."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from virtfleet_common import effects
from virtfleet_common.actions import ActionSpec
from virtfleet_common.effects import Effect
from virtfleet_common.errors import BadRequest
from virtfleet_common.events import lifecycle
from virtfleet_common.records import ActionState, Fault, Instance
from virtfleet_common.steps import STEPS, make_step
from virtfleet_common.store.expect import Expect

SYSTEM = "system/power_sync"
"""The user of actions that nobody asked for."""
_REMEMBERED = 16
"""Actions that an instance remembers to have accepted; the answers to older commands are kept in `replies`."""


def begin(
    spec: ActionSpec,
    instance: Instance,
    action_id: str,
    *,
    by: tuple[str, str],
    at: datetime,
    timeout: float,
    args: Mapping[str, Any] | None = None,
) -> ActionState:
    """The action with its first step, for the user and the project that `by` names. Raises BadRequest for an action
    that has no steps."""
    if spec.step is None or spec.step not in STEPS:
        raise BadRequest(f"There is no such action: {spec.name}", rule="action_exists")
    user_id, project_id = by
    return ActionState(
        id=action_id,
        name=spec.name,
        trace_id=action_id.removeprefix("req-").replace("-", "")[:32],
        user_id=user_id,
        project_id=project_id,
        step=make_step(spec.step, instance.host, args=args),
        started_at=at,
        expires_at=at + timedelta(seconds=timeout),
        original_vm_state=instance.vm_state,
        progressed_at=at,
    )


def begun(
    instance: Instance,
    spec: ActionSpec,
    action: ActionState,
    fields: Mapping[str, Any],
    more: Sequence[Effect] = (),
) -> dict[str, Any]:
    """The transition that makes `action` the one in progress, with more `fields` and effects; what it preempts ends."""
    return {
        "expect": unchanged(instance),
        "set": {"task_state": spec.first_task, "progress": 0, **accepting(instance, action.id), **fields},
        "begin": action,
        "effects": [
            *superseded(instance, by=spec.name, now=action.started_at), *opening(instance, action), *more,
        ],
    }  # fmt: skip


def unchanged(instance: Instance) -> Expect:
    """The instance is as it was read."""
    return Expect(
        task_states=frozenset({instance.task_state}),
        vm_states=frozenset({instance.vm_state}),
        action_id=instance.action.id if instance.action else None,
        rev=instance.rev,
    )


def opening(instance: Instance, action: ActionState) -> list[Effect]:
    """What is told when an action is accepted."""
    begun = instance.model_copy(update={"action": action})
    opened = effects.opened(
        action.id,
        instance_id=instance.id,
        action=action.name,
        user_id=action.user_id,
        project_id=action.project_id,
        start=action.started_at,
    )
    after = {"task_state": action.step.expects[0]}
    return [opened, lifecycle(begun, action.name, "start", after=after, request_id=action.id)]


def accepting(instance: Instance, action_id: str) -> dict[str, list[str]]:
    """The field that makes the acceptance of an action its only one."""
    return {"accepted": [*instance.accepted[1 - _REMEMBERED :], action_id]}


def superseded(instance: Instance, *, by: str, now: datetime) -> list[Effect]:
    """What ends the record of the action in progress when another one preempts it."""
    action = instance.action
    if action is None:
        return []
    why = f"superseded by {by}"
    fault = Fault(code="superseded", message=why, created=now)
    return [
        effects.step_finished(action.id, action.step.seq, at=now, result="superseded", details=why),
        effects.closed(action.id, at=now, result="superseded", message=why),
        lifecycle(instance, action.name, "error", after={}, request_id=action.id, fault=fault),
    ]
