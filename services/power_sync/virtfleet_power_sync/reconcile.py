"""What the hypervisor says against what the record says: a table, no I/O.

The record is right about intent, the hypervisor about fact. What is found is adopted, and never acted on here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virtfleet_common.records import Instance
from virtfleet_common.states import PowerState, VmState

_OFF = frozenset({PowerState.SHUTDOWN, PowerState.CRASHED})
_ADOPTED: Mapping[tuple[VmState, PowerState], VmState] = {
    (VmState.ACTIVE, PowerState.SHUTDOWN): VmState.STOPPED,
    (VmState.ACTIVE, PowerState.CRASHED): VmState.STOPPED,
    (VmState.ACTIVE, PowerState.PAUSED): VmState.PAUSED,
    (VmState.ACTIVE, PowerState.SUSPENDED): VmState.SUSPENDED,
    (VmState.STOPPED, PowerState.RUNNING): VmState.ACTIVE,
    (VmState.STOPPED, PowerState.PAUSED): VmState.PAUSED,
    (VmState.PAUSED, PowerState.RUNNING): VmState.ACTIVE,
    (VmState.PAUSED, PowerState.SHUTDOWN): VmState.STOPPED,
    (VmState.PAUSED, PowerState.CRASHED): VmState.STOPPED,
    (VmState.SUSPENDED, PowerState.RUNNING): VmState.ACTIVE,
}
_WORDS: Mapping[PowerState, str] = {
    PowerState.NOSTATE: "missing",
    PowerState.RUNNING: "running",
    PowerState.PAUSED: "paused",
    PowerState.SHUTDOWN: "stopped",
    PowerState.CRASHED: "crashed",
    PowerState.SUSPENDED: "suspended",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """What the record has to learn: the fields to set, and the word of the event."""

    word: str
    set: Mapping[str, Any]


def differs(instance: Instance, reported: PowerState) -> Difference | None:
    """What a report changes in the record; None when the record is right, or an action is at work on it."""
    power = reported.shown
    if instance.task_state is not None or (power == instance.power_state.shown and not _is_stale(instance, power)):
        return None
    vm_state = _ADOPTED.get((instance.vm_state, power), instance.vm_state)
    return Difference(_WORDS[power], {"power_state": power, "vm_state": vm_state})


def _is_stale(instance: Instance, power: PowerState) -> bool:
    """The power state is known and the vm_state did not follow it."""
    return (instance.vm_state, power) in _ADOPTED
