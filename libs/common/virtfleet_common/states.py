"""Nova's names for what an instance is (vm_state), what is done to it (task_state), what its guest does (power_state).

Source of the names and numbers: OpenStack Nova, so that people and clients already know them.
"""

from enum import IntEnum, StrEnum


class VmState(StrEnum):
    """What an instance is, between actions."""

    BUILDING = "building"
    ACTIVE = "active"
    STOPPED = "stopped"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    RESCUED = "rescued"
    RESIZED = "resized"
    ERROR = "error"
    DELETED = "deleted"


class TaskState(StrEnum):
    """What is being done to an instance; null in the record when nothing is."""

    SCHEDULING = "scheduling"
    NETWORKING = "networking"
    BLOCK_DEVICE_MAPPING = "block_device_mapping"
    SPAWNING = "spawning"
    REBOOTING = "rebooting"
    REBOOT_PENDING = "reboot_pending"
    REBOOT_STARTED = "reboot_started"
    REBOOTING_HARD = "rebooting_hard"
    REBOOT_PENDING_HARD = "reboot_pending_hard"
    REBOOT_STARTED_HARD = "reboot_started_hard"
    POWERING_OFF = "powering-off"
    POWERING_ON = "powering-on"
    PAUSING = "pausing"
    UNPAUSING = "unpausing"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    RESIZE_PREP = "resize_prep"
    RESIZE_MIGRATING = "resize_migrating"
    RESIZE_MIGRATED = "resize_migrated"
    RESIZE_FINISH = "resize_finish"
    RESIZE_CONFIRMING = "resize_confirming"
    RESIZE_REVERTING = "resize_reverting"
    REBUILDING = "rebuilding"
    REBUILD_BLOCK_DEVICE_MAPPING = "rebuild_block_device_mapping"
    REBUILD_SPAWNING = "rebuild_spawning"
    DELETING = "deleting"


class PowerState(IntEnum):
    """What the hypervisor reports of a guest. Output keeps to Nova's 0, 1, 3, 4, 6, 7 (see `shown`)."""

    NOSTATE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    SUSPENDED = 7
    FAILED = 8
    BUILDING = 9

    @property
    def shown(self) -> "PowerState":
        """The number Nova shows for this state: blocked reads as running, shut off as shut down."""
        return _SHOWN.get(self, self)

    @property
    def is_on(self) -> bool:
        """Whether the guest holds a running or paused virtual machine process."""
        return self.shown in {PowerState.RUNNING, PowerState.PAUSED, PowerState.SUSPENDED}


_SHOWN = {
    PowerState.BLOCKED: PowerState.RUNNING,
    PowerState.SHUTOFF: PowerState.SHUTDOWN,
    PowerState.FAILED: PowerState.CRASHED,
    PowerState.BUILDING: PowerState.NOSTATE,
}


class HostState(StrEnum):
    """Whether a host's heartbeats arrive, by the receiver's clock."""

    UP = "up"
    UNKNOWN = "unknown"
    DOWN = "down"


SOFT_REBOOT_TASKS = frozenset({TaskState.REBOOTING, TaskState.REBOOT_PENDING, TaskState.REBOOT_STARTED})
HARD_REBOOT_TASKS = frozenset({TaskState.REBOOTING_HARD, TaskState.REBOOT_PENDING_HARD, TaskState.REBOOT_STARTED_HARD})
RESIZE_TASKS = frozenset(
    {TaskState.RESIZE_PREP, TaskState.RESIZE_MIGRATING, TaskState.RESIZE_MIGRATED, TaskState.RESIZE_FINISH}
)
EVACUABLE = frozenset({VmState.ACTIVE, VmState.STOPPED, VmState.PAUSED, VmState.SUSPENDED, VmState.ERROR})
"""What an instance of a lost host must be to go on elsewhere."""
REBUILD_TASKS = frozenset({TaskState.REBUILDING, TaskState.REBUILD_BLOCK_DEVICE_MAPPING, TaskState.REBUILD_SPAWNING})

_PLAIN_STATUS = {
    VmState.BUILDING: "BUILD",
    VmState.ACTIVE: "ACTIVE",
    VmState.STOPPED: "SHUTOFF",
    VmState.PAUSED: "PAUSED",
    VmState.SUSPENDED: "SUSPENDED",
    VmState.RESCUED: "RESCUE",
    VmState.RESIZED: "VERIFY_RESIZE",
    VmState.ERROR: "ERROR",
    VmState.DELETED: "DELETED",
}
_TASK_STATUS: dict[VmState, tuple[tuple[frozenset[TaskState], str], ...]] = {
    VmState.ACTIVE: (
        (SOFT_REBOOT_TASKS, "REBOOT"),
        (HARD_REBOOT_TASKS, "HARD_REBOOT"),
        (REBUILD_TASKS, "REBUILD"),
        (RESIZE_TASKS, "RESIZE"),
    ),
    VmState.STOPPED: ((RESIZE_TASKS, "RESIZE"), (REBUILD_TASKS, "REBUILD")),
    VmState.RESIZED: ((frozenset({TaskState.RESIZE_REVERTING}), "REVERT_RESIZE"),),
    VmState.ERROR: ((REBUILD_TASKS, "REBUILD"),),
}


def api_status(vm_state: VmState, task_state: TaskState | None) -> str:
    """The `status` that clients of the Compute API see for a pair of states (Nova's `_STATE_MAP`)."""
    for tasks, status in _TASK_STATUS.get(vm_state, ()):
        if task_state in tasks:
            return status
    return _PLAIN_STATUS[vm_state]


def vm_states_of_status(status: str) -> frozenset[VmState]:
    """The vm_states that can show `status`: what a list filtered by status has to look at; empty if unknown."""
    wanted = status.upper()
    plain = {vm for vm, shown in _PLAIN_STATUS.items() if shown == wanted}
    special = {vm for vm, rows in _TASK_STATUS.items() if any(shown == wanted for _, shown in rows)}
    return frozenset(plain | special)
