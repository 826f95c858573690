"""Which step runs where, on which task states, and what is done when it fails: one row per step.

A step is claimed while the task state is in its `path`; the claim moves the first state of the path to `claimed_as`.
The executor walks along the path; the end of the step either ends the action or hands over to another step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from virtfleet_common.records import Step
from virtfleet_common.states import TaskState


class Executor(StrEnum):
    """Who executes a step: any scheduler, or the agent of one host."""

    SCHEDULER = "scheduler"
    COMPUTE = "compute"


class FailureRule(StrEnum):
    """What becomes of the instance when a step fails; the action always ends (or tries the next host) with a fault."""

    KEEP = "keep"
    """vm_state kept, task null."""
    OBSERVE = "observe"
    """The guest does not run: vm_state error. It runs, or nobody can tell: vm_state kept."""
    RESCHEDULE = "reschedule"
    """The next host, up to `max_attempts`; then vm_state error."""
    ERROR = "error"
    """vm_state error, task null."""
    RESELECT = "reselect"
    """Another destination, up to `max_attempts`; then as `abandon`."""
    ABANDON = "abandon"
    """The move is given up before the instance changed hands: vm_state kept, task null, migration error."""


@dataclass(frozen=True, slots=True)
class StepSpec:
    """One row. `record` is the name of its action event, as Nova's clients know it; `again` is the step that looks for
    another host when this one fails."""

    name: str
    executor: Executor
    path: tuple[TaskState, ...]
    record: str
    on_failure: FailureRule
    claimed_as: TaskState | None = None
    again: str | None = None


T, X, F = TaskState, Executor, FailureRule

STEPS: Mapping[str, StepSpec] = {
    spec.name: spec
    for spec in (
        StepSpec("select", X.SCHEDULER, (T.SCHEDULING,), "schedule_instances", F.ERROR),
        StepSpec(
            "create",
            X.COMPUTE,
            (T.NETWORKING, T.BLOCK_DEVICE_MAPPING, T.SPAWNING),
            "compute__do_build_and_run_instance",
            F.RESCHEDULE,
            again="select",
        ),
        StepSpec("delete", X.COMPUTE, (T.DELETING,), "compute_terminate_instance", F.ERROR),
        StepSpec(
            "reboot_soft",
            X.COMPUTE,
            (T.REBOOTING, T.REBOOT_PENDING, T.REBOOT_STARTED),
            "compute_reboot_instance",
            F.OBSERVE,
            claimed_as=T.REBOOT_PENDING,
        ),
        StepSpec(
            "reboot_hard",
            X.COMPUTE,
            (T.REBOOTING_HARD, T.REBOOT_PENDING_HARD, T.REBOOT_STARTED_HARD),
            "compute_reboot_instance",
            F.OBSERVE,
            claimed_as=T.REBOOT_PENDING_HARD,
        ),
        StepSpec("start", X.COMPUTE, (T.POWERING_ON,), "compute_start_instance", F.KEEP),
        StepSpec("stop", X.COMPUTE, (T.POWERING_OFF,), "compute_stop_instance", F.KEEP),
        StepSpec("pause", X.COMPUTE, (T.PAUSING,), "compute_pause_instance", F.KEEP),
        StepSpec("unpause", X.COMPUTE, (T.UNPAUSING,), "compute_unpause_instance", F.KEEP),
        StepSpec("suspend", X.COMPUTE, (T.SUSPENDING,), "compute_suspend_instance", F.KEEP),
        StepSpec("resume", X.COMPUTE, (T.RESUMING,), "compute_resume_instance", F.KEEP),
        StepSpec("attach_volume", X.COMPUTE, (T.BLOCK_DEVICE_MAPPING,), "compute_attach_volume", F.KEEP),
        StepSpec("detach_volume", X.COMPUTE, (T.BLOCK_DEVICE_MAPPING,), "compute_detach_volume", F.KEEP),
        StepSpec("select_destination", X.SCHEDULER, (T.RESIZE_PREP,), "cold_migrate", F.ABANDON),
        StepSpec("prepare", X.COMPUTE, (T.RESIZE_PREP,), "compute_prep_resize", F.RESELECT, again="select_destination"),
        StepSpec(
            "move",
            X.COMPUTE,
            (T.RESIZE_PREP, T.RESIZE_MIGRATING),
            "compute_resize_instance",
            F.ABANDON,
            claimed_as=T.RESIZE_MIGRATING,
        ),
        StepSpec(
            "finish",
            X.COMPUTE,
            (T.RESIZE_MIGRATED, T.RESIZE_FINISH),
            "compute_finish_resize",
            F.ERROR,
            claimed_as=T.RESIZE_FINISH,
        ),
        StepSpec("revert", X.COMPUTE, (T.RESIZE_REVERTING,), "compute_revert_resize", F.KEEP),
        StepSpec("select_shelter", X.SCHEDULER, (T.REBUILDING,), "rebuild_server", F.ABANDON),
        StepSpec(
            "shelter",
            X.COMPUTE,
            (T.REBUILDING, T.REBUILD_BLOCK_DEVICE_MAPPING, T.REBUILD_SPAWNING),
            "compute_rebuild_instance",
            F.RESELECT,
            again="select_shelter",
        ),
        StepSpec("finish_revert", X.COMPUTE, (T.RESIZE_REVERTING,), "compute_finish_revert_resize", F.ERROR),
    )
}


def make_step(name: str, host: str | None, *, seq: int = 1, args: Mapping[str, object] | None = None) -> Step:
    """The step `name` for `host` (ignored by steps of the scheduler), the `seq`-th of its action."""
    spec = STEPS[name]
    executor = "scheduler" if spec.executor is Executor.SCHEDULER else f"compute.{host}"
    return Step(name=name, executor=executor, expects=spec.path, args=dict(args or {}), seq=seq)
