"""What a writer believes of an instance: the condition of every compare-and-set, for MongoDB and for its twin."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from virtfleet_common.records import ActionState, Instance
from virtfleet_common.states import TaskState, VmState


@dataclass(frozen=True, slots=True)
class Expect:
    """A field left None is not looked at, but for `task_states`, where None inside the set means "no task".

    `claimed_by` "" means "claimed by nobody".
    """

    task_states: frozenset[TaskState | None] | None = None
    vm_states: frozenset[VmState] | None = None
    action_id: str | None = None
    seq: int | None = None
    executor: str | None = None
    claimed_by: str | None = None
    progressed_at: datetime | None = None
    host: str | None = None
    epoch: int | None = None
    rev: int | None = None

    def as_filter(self) -> dict[str, Any]:
        """This condition as a MongoDB filter."""
        wanted: dict[str, Any] = {}
        if self.task_states is not None:
            wanted["task_state"] = {"$in": list(self.task_states)}
        if self.vm_states is not None:
            wanted["vm_state"] = {"$in": list(self.vm_states)}
        if self.claimed_by is not None:
            wanted["action.claimed_by"] = self.claimed_by or None
        plain = {
            "action.id": self.action_id, "action.step.seq": self.seq, "action.step.executor": self.executor,
            "action.progressed_at": self.progressed_at,
            "host": self.host, "epoch": self.epoch, "rev": self.rev,
        }  # fmt: skip
        return wanted | {path: value for path, value in plain.items() if value is not None}

    def mismatch(self, instance: Instance) -> tuple[str, Any] | None:
        """The first field that is not as expected, and its value; None when all are."""
        action = instance.action
        found: Mapping[str, tuple[bool, Any]] = {
            "action": (self.action_id is None or _id(action) == self.action_id, _id(action)),
            "task_state": (self.task_states is None or instance.task_state in self.task_states, instance.task_state),
            "vm_state": (self.vm_states is None or instance.vm_state in self.vm_states, instance.vm_state),
            "step": (self.seq is None or _seq(action) == self.seq, _seq(action)),
            "claimed_by": (self.claimed_by is None or _claimer(action) == self.claimed_by, _claimer(action)),
            "executor": (self.executor is None or _executor(action) == self.executor, _executor(action)),
            "progressed_at": (self.progressed_at is None or _progress(action) == self.progressed_at, _progress(action)),
            "host": (self.host is None or instance.host == self.host, instance.host),
            "epoch": (self.epoch is None or instance.epoch == self.epoch, instance.epoch),
            "rev": (self.rev is None or instance.rev == self.rev, instance.rev),
        }
        return next(((name, value) for name, (holds, value) in found.items() if not holds), None)


def _id(action: ActionState | None) -> str | None:
    return action.id if action else None


def _seq(action: ActionState | None) -> int | None:
    return action.step.seq if action else None


def _executor(action: ActionState | None) -> str | None:
    return action.step.executor if action else None


def _progress(action: ActionState | None) -> datetime | None:
    return action.progressed_at if action else None


def _claimer(action: ActionState | None) -> str:
    return (action.claimed_by or "") if action else ""


class Mismatch(Exception):
    """A compare-and-set lost: the first field that was not as expected, and what is stored (None: no such instance)."""

    def __init__(self, attribute: str, value: Any, instance: Instance | None) -> None:
        super().__init__(f"{attribute} is {value}")
        self.attribute = attribute
        self.value = value
        self.instance = instance
