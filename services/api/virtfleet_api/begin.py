"""The beginning of an action: what is written of it, and what is told."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from virtfleet_common import effects
from virtfleet_common.actions import ActionSpec
from virtfleet_common.effects import Effect
from virtfleet_common.errors import BadRequest, Forbidden
from virtfleet_common.events import lifecycle
from virtfleet_common.records import ActionState, Fault, Instance
from virtfleet_common.states import VmState
from virtfleet_common.steps import STEPS, make_step

from virtfleet_api.identity import Identity

NAMESPACE = UUID("b1f5a4de-6a0f-4d0a-9d3c-7f1d6a0c52f1")
READ_YOUR_WRITES = 1.0
"""Seconds the answer waits for the action's history to be readable; with the broker away it comes without."""


def begin(
    who: Identity,
    spec: ActionSpec,
    host: str | None,
    vm_state: VmState,
    action_id: str,
    args: Mapping[str, Any],
    now: datetime,
    timeout: float,
) -> ActionState:
    """The action with its first step. Raises BadRequest for an action that has none."""
    if spec.step is None or spec.step not in STEPS:
        raise BadRequest(f"There is no such action: {spec.name}", rule="action_exists")
    return ActionState(
        id=action_id,
        name=spec.name,
        trace_id=action_id.removeprefix("req-").replace("-", "")[:32],
        user_id=who.user_id,
        project_id=who.project_id,
        step=make_step(spec.step, host, args=args),
        started_at=now,
        expires_at=now + timedelta(seconds=timeout),
        original_vm_state=vm_state,
        progressed_at=now,
    )


def opened(instance: Instance, action_id: str, name: str, who: Identity, now: datetime) -> Effect:
    """The history of an action begins."""
    return effects.opened(
        action_id, instance_id=instance.id, action=name, user_id=who.user_id, project_id=who.project_id, start=now
    )


def opening(instance: Instance, action: ActionState) -> list[Effect]:
    """What is told when an action is accepted."""
    begun = instance.model_copy(update={"action": action})
    who = Identity(action.user_id, action.project_id, frozenset())
    after = {"task_state": action.step.expects[0]}
    return [
        opened(instance, action.id, action.name, who, action.started_at),
        lifecycle(begun, action.name, "start", after=after, request_id=action.id),
    ]


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


def require_role(who: Identity, role: str, action: str) -> None:
    """Raises Forbidden if `who` does not hold the role that an action needs."""
    if not who.has_role(role):
        raise Forbidden(f"Policy doesn't allow {action} to be performed.", rule=f"policy.{action}")
