"""What a step comes to: done, handed over, or failed; and the write that each of these is."""

import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from virtfleet_common import effects, moves
from virtfleet_common.effects import Effect
from virtfleet_common.errors import Faulty, VirtfleetError
from virtfleet_common.events import lifecycle
from virtfleet_common.records import ActionState, Fault, Instance
from virtfleet_common.records.instance import step_id
from virtfleet_common.steps import STEPS, make_step

Change = dict[str, Any]
"""The arguments of a transition."""
Undo = Callable[[], Awaitable[None]]
"""Takes back what a step did outside the record, when it turns out that the action was taken from it meanwhile."""


@dataclass(frozen=True, slots=True)
class Done:
    """The step was the last one: the action ends with these fields of the instance."""

    set: Mapping[str, Any]
    effects: Sequence[Effect] = ()
    undo: Undo | None = None


@dataclass(frozen=True, slots=True)
class HandOver:
    """The action goes on with another step, on `host` (None: a scheduler)."""

    step: str
    host: str | None
    set: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)
    effects: Sequence[Effect] = ()
    undo: Undo | None = None


Outcome = Done | HandOver


class NotCleaned(Faulty):
    """A step failed and could not undo what it had begun: the instance must not be tried elsewhere."""

    code = "not_cleaned"


def fault_of(error: Exception, host: str | None) -> Fault:
    """An exception as the fault that people see."""
    is_known = isinstance(error, VirtfleetError)
    return Fault(
        code=error.code if isinstance(error, VirtfleetError) else "internal",
        message=str(error) if is_known else f"{type(error).__name__}: {error}",
        created=datetime.now(UTC),
        details="" if is_known else "".join(traceback.format_exception(error)),
        host=host,
        facts=dict(error.facts) if isinstance(error, VirtfleetError) else {},
    )


def succeeded(instance: Instance, action: ActionState, outcome: Outcome) -> Change:
    """The last write of a step that worked: the end of the action, or its next step."""
    now = datetime.now(UTC)
    finished = effects.step_finished(action.id, action.step.seq, at=now, result="Success")
    if isinstance(outcome, HandOver):
        return handed_over(instance, action, outcome, [finished])
    closed = effects.closed(action.id, at=now, result="Success")
    end = lifecycle(instance, action.name, "end", after={"task_state": None, **outcome.set}, request_id=action.id)
    return {
        "set": {"task_state": None, **outcome.set},
        "end": True,
        "effects": [finished, closed, end, *outcome.effects],
    }


def handed_over(instance: Instance, action: ActionState, outcome: HandOver, before: Sequence[Effect]) -> Change:
    """The write that makes `outcome.step` the current step of the action."""
    step = make_step(outcome.step, outcome.host, seq=action.step.seq + 1)
    return {
        "set": {"task_state": STEPS[outcome.step].path[0], **outcome.set},
        "step": step,
        "action": {f"notes.{name}": value for name, value in outcome.notes.items()},
        "effects": [*before, *outcome.effects],
    }


def completed(
    instance: Instance,
    name: str,
    action_id: str,
    *,
    by: tuple[str, str],
    at: datetime,
    set: Mapping[str, Any],
    more: Sequence[Effect] = (),
) -> Change:
    """The write of an action that its acceptance completes; `by` is the user and the project it is done for."""
    user_id, project_id = by
    told = [
        effects.opened(
            action_id, instance_id=instance.id, action=name, user_id=user_id, project_id=project_id, start=at
        ),
        lifecycle(instance, name, "start", after={}, request_id=action_id),
        effects.closed(action_id, at=at, result="Success"),
        lifecycle(instance, name, "end", after=set, request_id=action_id),
    ]
    return {"set": set, "effects": [*told, *more]}


def reselected(instance: Instance, action: ActionState, fault: Fault) -> Change:
    """The write that looks for another destination of a move: the one that refused is excluded."""
    move = instance.move
    turn = moves.refused(instance, move, fault.created) if move else moves.Turn({})
    excluded = [*action.notes.get("excluded", ()), move.destination if move else None]
    notes = {"excluded": excluded, "last_fault": fault.model_dump()}
    told = [*turn.effects, *_host_failed(action, move.destination if move else None)]
    again = HandOver(STEPS[action.step.name].again or action.step.name, None, turn.set, notes, told)
    finished = effects.step_finished(
        action.id, action.step.seq, at=fault.created, result="Error", details=fault.message
    )
    return handed_over(instance, action, again, [finished])


def rescheduled(instance: Instance, action: ActionState, fault: Fault, more: Sequence[Effect] = ()) -> Change:
    """The write that sends a failed create to the next host: this one is excluded, its claim given back."""
    finished = effects.step_finished(
        action.id, action.step.seq, at=fault.created, result="Error", details=fault.message
    )
    excluded = [*action.notes.get("excluded", ()), instance.host]
    again = HandOver(
        "select",
        None,
        {"host": None, "claim": None},
        {"excluded": excluded, "last_fault": fault.model_dump()},
        [*_given_back(instance), *_host_failed(action, instance.host), *more],
    )
    return handed_over(instance, action, again, [finished])


def _given_back(instance: Instance) -> list[Effect]:
    return [effects.release(instance.id, instance.claim)] if instance.claim else []


def _host_failed(action: ActionState, host: str | None) -> list[Effect]:
    """Placement is to prefer other hosts for a while."""
    return [effects.host_failed(host, step_id(action.id, action.step.seq))] if host else []


def failed(
    instance: Instance, action: ActionState, fault: Fault, states: Mapping[str, Any], more: Sequence[Effect] = ()
) -> Change:
    """The write that ends an action with a fault, leaving `states`, with `more` effects."""
    now = fault.created
    finished = effects.step_finished(
        action.id, action.step.seq, at=now, result="Error", details=fault.message, traceback=fault.details or None
    )
    closed = effects.closed(action.id, at=now, result="Error", message=fault.message)
    after = {"task_state": None, **states}
    told = lifecycle(instance, action.name, "error", after=after, request_id=action.id, fault=fault)
    given_back = []
    if "explanation" in fault.facts:  # why no host was found is told with the action too
        given_back.append(effects.record(action.id, {"explanation": fault.facts["explanation"]}))
    if "claim" in states and instance.claim:
        given_back += [*_given_back(instance), *_host_failed(action, instance.host)]
    return {
        "set": {"task_state": None, "fault": fault.model_dump(), **states},
        "end": True,
        "effects": [finished, closed, told, *given_back, *more],
    }
