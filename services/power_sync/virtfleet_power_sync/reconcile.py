"""What the hypervisor says against what the record says: a table, no I/O.

The record is right about intent, the hypervisor about fact. What is found is adopted; where the instance's policy says
otherwise, the intent stays on record and an action is to make it fact again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virtfleet_common.states import PowerState, VmState
from virtfleet_common.store.instance_feed import Recorded

from virtfleet_power_sync.policies import ADOPTING, Policies

V, P = VmState, PowerState
ADOPTED: Mapping[tuple[VmState, PowerState], VmState] = {
    (V.ACTIVE, P.SHUTDOWN): V.STOPPED,
    (V.ACTIVE, P.CRASHED): V.STOPPED,
    (V.ACTIVE, P.PAUSED): V.PAUSED,
    (V.ACTIVE, P.SUSPENDED): V.SUSPENDED,
    (V.STOPPED, P.RUNNING): V.ACTIVE,
    (V.STOPPED, P.PAUSED): V.PAUSED,
    (V.PAUSED, P.RUNNING): V.ACTIVE,
    (V.PAUSED, P.SHUTDOWN): V.STOPPED,
    (V.PAUSED, P.CRASHED): V.STOPPED,
    (V.SUSPENDED, P.RUNNING): V.ACTIVE,
    (V.SUSPENDED, P.PAUSED): V.PAUSED,
}
"""What a vm_state becomes. Any other pair, and any other vm_state, is the power state's alone."""
_WORDS: Mapping[PowerState, str] = {
    P.NOSTATE: "missing",
    P.RUNNING: "running",
    P.PAUSED: "paused",
    P.SHUTDOWN: "stopped",
    P.CRASHED: "crashed",
    P.SUSPENDED: "suspended",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """What the record has to learn: the fields to set, and the word of the event. `is_news`: the fields are others than
    on record. `remedy`: the action (a key of ACTIONS) that the instance's policy asks for."""

    word: str
    set: Mapping[str, Any]
    is_news: bool = True
    remedy: str | None = None


def differs(recorded: Recorded, reported: PowerState | None, policies: Policies = ADOPTING) -> Difference | None:
    """What a report changes in the record; None when the record is right, or an action is at work on it.

    `reported` None: the guest is missing. A guest that is there and whose state nobody knows proves nothing.
    """
    power = PowerState.NOSTATE if reported is None else reported.shown
    if recorded.task_state is not None or (power is PowerState.NOSTATE and reported is not None):
        return None
    adopted = ADOPTED.get((recorded.vm_state, power), recorded.vm_state)
    remedy = policies.remedy(recorded.vm_state, adopted)
    vm_state = recorded.vm_state if remedy else adopted
    is_news = (power, vm_state) != (recorded.power_state.shown, recorded.vm_state)
    if not is_news and remedy is None:
        return None
    return Difference(_WORDS[power], {"power_state": power, "vm_state": vm_state}, is_news, remedy)


def is_newer(recorded: Recorded, boot: str, sequence: int) -> bool:
    """Whether a report was begun after the power state in the record was."""
    seen = recorded.seen
    return seen is None or seen[0] != boot or sequence > seen[1]
