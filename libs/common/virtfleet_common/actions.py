"""Which action is allowed when, and which step comes first: one row per action, read by accepting code and docs.

Source: the preconditions of Nova's compute API; where a row differs, the reason stands beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from virtfleet_common.states import EVACUABLE, SOFT_REBOOT_TASKS, TaskState, VmState


class HostNeed(StrEnum):
    """What an action asks of the instance's host before it is accepted."""

    UP = "up"
    DOWN = "down"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """One row. `vm_states` or `task_states` None: any. `step` None: the acceptance itself completes the action."""

    name: str
    vm_states: frozenset[VmState] | None
    task_states: frozenset[TaskState | None] | None
    needs_host: HostNeed
    first_task: TaskState | None
    step: str | None
    role: str = "member"
    respects_lock: bool = True
    status: int = 202


def _vm(*states: VmState) -> frozenset[VmState]:
    return frozenset(states)


_IDLE: frozenset[TaskState | None] = frozenset({None})
# A hard reboot is the way out of work that hangs in the guest, so it may take over these (and no other work).
_REBOOTABLE: frozenset[TaskState | None] = (
    _IDLE | SOFT_REBOOT_TASKS | {TaskState.PAUSING, TaskState.UNPAUSING, TaskState.SUSPENDING, TaskState.RESUMING}
)
_ANY = None
# A move whose last step failed left the instance in error, with both copies kept: its owner may still decide.
_MOVED = frozenset({VmState.RESIZED, VmState.ERROR})
# As in Nova, but for the task: theirs attaches beside other work, ours is work like any other.
_PLUGGABLE = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED, VmState.RESIZED})
V, T = VmState, TaskState

ACTIONS: Mapping[str, ActionSpec] = {
    "create": ActionSpec("create", _vm(), _IDLE, HostNeed.ANY, T.SCHEDULING, "select"),
    "delete": ActionSpec("delete", _ANY, _ANY, HostNeed.ANY, T.DELETING, "delete", status=204),
    "reboot_soft": ActionSpec("reboot", _vm(V.ACTIVE), _IDLE, HostNeed.UP, T.REBOOTING, "reboot_soft"),
    "reboot_hard": ActionSpec(
        "reboot",
        _vm(V.ACTIVE, V.STOPPED, V.PAUSED, V.SUSPENDED, V.RESCUED, V.ERROR),
        _REBOOTABLE,
        HostNeed.UP,
        T.REBOOTING_HARD,
        "reboot_hard",
    ),
    "start": ActionSpec("start", _vm(V.STOPPED), _IDLE, HostNeed.UP, T.POWERING_ON, "start"),
    "stop": ActionSpec("stop", _vm(V.ACTIVE, V.PAUSED, V.RESCUED, V.ERROR), _IDLE, HostNeed.UP, T.POWERING_OFF, "stop"),
    "pause": ActionSpec("pause", _vm(V.ACTIVE), _IDLE, HostNeed.UP, T.PAUSING, "pause"),
    "unpause": ActionSpec("unpause", _vm(V.PAUSED), _IDLE, HostNeed.UP, T.UNPAUSING, "unpause"),
    "suspend": ActionSpec("suspend", _vm(V.ACTIVE), _IDLE, HostNeed.UP, T.SUSPENDING, "suspend"),
    "resume": ActionSpec("resume", _vm(V.SUSPENDED), _IDLE, HostNeed.UP, T.RESUMING, "resume"),
    "attach_volume": ActionSpec(
        "attach_volume", _PLUGGABLE, _IDLE, HostNeed.UP, T.BLOCK_DEVICE_MAPPING, "attach_volume", status=200
    ),
    "detach_volume": ActionSpec(
        "detach_volume", _PLUGGABLE, _IDLE, HostNeed.UP, T.BLOCK_DEVICE_MAPPING, "detach_volume"
    ),
    "lock": ActionSpec("lock", _ANY, _ANY, HostNeed.ANY, None, None, respects_lock=False),
    "unlock": ActionSpec("unlock", _ANY, _ANY, HostNeed.ANY, None, None, respects_lock=False),
    "reset_state": ActionSpec("resetState", _ANY, _ANY, HostNeed.ANY, None, None, role="admin", respects_lock=False),
    "resize": ActionSpec("resize", _vm(V.ACTIVE, V.STOPPED), _IDLE, HostNeed.UP, T.RESIZE_PREP, "select_destination"),
    "migrate": ActionSpec(
        "migrate", _vm(V.ACTIVE, V.STOPPED), _IDLE, HostNeed.UP, T.RESIZE_PREP, "select_destination", role="admin"
    ),
    "confirm_resize": ActionSpec("confirmResize", _MOVED, _IDLE, HostNeed.ANY, T.RESIZE_CONFIRMING, None, status=204),
    "revert_resize": ActionSpec("revertResize", _MOVED, _IDLE, HostNeed.ANY, T.RESIZE_REVERTING, "revert"),
    "evacuate": ActionSpec(
        "evacuate",
        EVACUABLE,
        _IDLE,
        HostNeed.DOWN,
        T.REBUILDING,
        "select_shelter",
        role="admin",
        respects_lock=False,
        status=200,
    ),
    "rebuild": ActionSpec("rebuild", _vm(V.ACTIVE, V.STOPPED, V.ERROR), _IDLE, HostNeed.UP, T.REBUILDING, "rebuild"),
}
