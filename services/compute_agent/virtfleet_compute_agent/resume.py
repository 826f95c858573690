"""What a starting agent does about each guest: tables of what the record says, no I/O.

`OWN_IDLE` and `OWN_AT_WORK` are about instances that the record places on this host; `deed` adds all others.
Nothing is ever deleted here: what a move or a deletion left is a clean-up of its own, which says so in the record.
"""

from collections.abc import Mapping
from enum import StrEnum

from virtfleet_common.ports import Guest
from virtfleet_common.records import EVACUATION, Instance
from virtfleet_common.states import TaskState, VmState


class Deed(StrEnum):
    """What is done about one guest."""

    KEEP = "keep"
    """It stays as it is; what differs from the record is told by the reports."""
    RUN = "run"
    """It should run. Where the machine was off meanwhile, it is started."""
    STEP = "step"
    """An action is at work on it: its step is resumed, or its wake-up is still to come."""
    STOP = "stop"
    """It is switched off and kept: whose it will be is being decided."""
    FORGET = "forget"
    """It lives elsewhere, or was deleted: it is switched off, and its definition goes."""
    REPORT = "report"
    """The record does not know it, or is older than it is: somebody has to look."""


OWN_IDLE: Mapping[VmState, Deed] = {
    VmState.BUILDING: Deed.KEEP,  # its create has failed, or was reset
    VmState.ACTIVE: Deed.RUN,
    VmState.STOPPED: Deed.KEEP,
    VmState.PAUSED: Deed.KEEP,  # its memory is gone with the machine: the reports say stopped
    VmState.SUSPENDED: Deed.KEEP,
    VmState.RESCUED: Deed.RUN,
    VmState.RESIZED: Deed.RUN,  # if it ran before its move
    VmState.ERROR: Deed.KEEP,
    VmState.DELETED: Deed.FORGET,
}
OWN_AT_WORK: Mapping[TaskState, Deed] = {
    TaskState.SCHEDULING: Deed.STEP,
    TaskState.NETWORKING: Deed.STEP,
    TaskState.BLOCK_DEVICE_MAPPING: Deed.STEP,
    TaskState.SPAWNING: Deed.STEP,
    TaskState.REBOOTING: Deed.STEP,
    TaskState.REBOOT_PENDING: Deed.STEP,
    TaskState.REBOOT_STARTED: Deed.STEP,
    TaskState.REBOOTING_HARD: Deed.STEP,
    TaskState.REBOOT_PENDING_HARD: Deed.STEP,
    TaskState.REBOOT_STARTED_HARD: Deed.STEP,
    TaskState.POWERING_OFF: Deed.STEP,
    TaskState.POWERING_ON: Deed.STEP,
    TaskState.PAUSING: Deed.STEP,
    TaskState.UNPAUSING: Deed.STEP,
    TaskState.SUSPENDING: Deed.STEP,
    TaskState.RESUMING: Deed.STEP,
    TaskState.RESIZE_PREP: Deed.RUN,  # another host is looked for, or prepares: the guest still runs here
    TaskState.RESIZE_MIGRATING: Deed.STEP,
    TaskState.RESIZE_MIGRATED: Deed.STEP,
    TaskState.RESIZE_FINISH: Deed.STEP,
    TaskState.RESIZE_CONFIRMING: Deed.STEP,
    TaskState.RESIZE_REVERTING: Deed.STEP,
    TaskState.REBUILDING: Deed.STEP,  # of this host's own; an evacuation from it: see `deed`
    TaskState.REBUILD_BLOCK_DEVICE_MAPPING: Deed.STEP,
    TaskState.REBUILD_SPAWNING: Deed.STEP,
    TaskState.DELETING: Deed.STEP,
}
_RUNNING = frozenset({VmState.ACTIVE, VmState.RESCUED})


def deed(host: str, instance: Instance | None, guest: Guest | None) -> Deed:
    """What this host does about an instance and its guest, when it starts and when it returns."""
    if instance is None:
        return Deed.REPORT
    if instance.vm_state is VmState.DELETED:
        return Deed.FORGET
    if _is_evacuated(instance, host):
        return Deed.STOP
    if instance.host == host:
        return OWN_IDLE[instance.vm_state] if instance.task_state is None else OWN_AT_WORK[instance.task_state]
    if guest is None:
        return Deed.KEEP
    if instance.epoch <= guest.epoch:
        return Deed.REPORT
    return Deed.STOP if instance.move is not None else Deed.FORGET


def is_to_be_started(host: str, instance: Instance, guest: Guest | None) -> bool:
    """Whether the record says that the guest runs, and it does not, on a machine that was off meanwhile."""
    if deed(host, instance, guest) is not Deed.RUN or (guest is not None and guest.power_state.is_on):
        return False
    if instance.vm_state is VmState.RESIZED:
        return instance.power_state.is_on
    return instance.vm_state in _RUNNING


def _is_evacuated(instance: Instance, host: str) -> bool:
    """Whether an evacuation from this host is under way, before or after the instance changed hands."""
    move = instance.move
    return move is not None and move.type == EVACUATION and move.source == host
