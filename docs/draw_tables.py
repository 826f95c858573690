"""Draws docs/tables.md from the tables of actions, of steps and of reports: `python docs/draw_tables.py`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from virtfleet_common.actions import ACTIONS, ActionSpec
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import TaskState, VmState
from virtfleet_common.steps import STEPS, Executor, FailureRule, StepSpec
from virtfleet_power_sync.policies import POLICIES, Policies
from virtfleet_power_sync.reconcile import ADOPTED

PAGE = Path(__file__).with_name("tables.md")
FOLLOWERS: Mapping[str, str] = {
    "select": "create",
    "select_destination": "prepare",
    "select_shelter": "shelter",
    "prepare": "move",
    "move": "finish",
    "revert": "finish_revert",
}
"""The step that a step which worked hands over to. Steps that are not here end their action."""
_RULES: Mapping[FailureRule, str] = {
    FailureRule.KEEP: "vm_state kept",
    FailureRule.OBSERVE: "error if the guest does not run, else vm_state kept",
    FailureRule.RESCHEDULE: "the next host, up to `VIRTFLEET_MAX_ATTEMPTS`; then error",
    FailureRule.ERROR: "error",
    FailureRule.RESELECT: "another destination, up to `VIRTFLEET_MAX_ATTEMPTS`; then as abandon",
    FailureRule.ABANDON: "the move is given up before the instance changed hands: vm_state kept, migration error",
}


def page() -> str:
    """The whole page."""
    return "\n".join([*_head(), *_actions(), "", *_steps(), "", *_diagram(), "", *_reports(), ""])


def _head() -> Iterator[str]:
    yield "# Actions and steps"
    yield ""
    yield "Drawn from `virtfleet_common.actions`, `virtfleet_common.steps` and `virtfleet_power_sync.reconcile` by"
    yield "`python docs/draw_tables.py`."
    yield ""


def _actions() -> Iterator[str]:
    yield "## Which action is allowed when"
    yield ""
    yield "| action | vm_state | task_state | host | lock | role | first task state | first step | HTTP |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for key, spec in ACTIONS.items():
        if spec.step is None or spec.step in STEPS:
            yield f"| {key} | " + " | ".join(_action_cells(spec)) + " |"


def _action_cells(spec: ActionSpec) -> list[str]:
    return [
        _set(spec.vm_states),
        _set(spec.task_states),
        spec.needs_host,
        "respected" if spec.respects_lock else "ignored",
        spec.role,
        spec.first_task or "-",
        spec.step or "-",
        str(spec.status),
    ]


def _steps() -> Iterator[str]:
    yield "## Which step runs where"
    yield ""
    yield "| step | executed by | task states | then | when it fails | recorded as |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for spec in STEPS.values():
        path, then = " -> ".join(spec.path), FOLLOWERS.get(spec.name, "the end")
        yield f"| {spec.name} | {_executor(spec)} | {path} | {then} | {spec.on_failure} | `{spec.record}` |"
    yield ""
    yield "What is done when a step fails; the action always ends with a fault, or tries the next host:"
    yield ""
    yield "| rule | what becomes of the instance |"
    yield "| --- | --- |"
    yield from (f"| {rule} | {meaning} |" for rule, meaning in _RULES.items())


def _diagram() -> Iterator[str]:
    yield "## Task states"
    yield ""
    yield "```mermaid"
    yield "stateDiagram-v2"
    for key, action in ACTIONS.items():
        if action.step in STEPS and action.first_task is not None:
            yield f"    idle --> {_node(action.first_task)}: {key}"
    for spec in STEPS.values():
        for before, after in zip(spec.path, spec.path[1:], strict=False):
            yield f"    {_node(before)} --> {_node(after)}: {spec.name}"
        yield f"    {_node(spec.path[-1])} --> {_node_after(spec)}: end of {spec.name}"
        if spec.again is not None:
            again = STEPS[spec.again].path[0]
            yield f"    {_node(spec.path[-1])} --> {_node(again)}: {spec.name} failed, the next host"
    yield "```"


def _reports() -> Iterator[str]:
    yield "## What a report changes"
    yield ""
    yield "While nothing is at work on an instance, its power_state becomes what its host reports, or NOSTATE when"
    yield "the guest is missing. Its vm_state follows in these rows, unless a policy has the guest follow the record."
    yield ""
    yield "| record | host reports | vm_state becomes | policy that has it otherwise |"
    yield "| --- | --- | --- | --- |"
    for (recorded, reported), adopted in ADOPTED.items():
        yield f"| {recorded} | {reported.name.lower()} | {adopted} | {_policy(recorded, adopted)} |"


def _policy(recorded: VmState, adopted: VmState) -> str:
    for name, (_, remedying) in POLICIES.items():
        remedy = Policies.of({name: remedying}, PowerSyncSettings()).remedy(recorded, adopted)
        if remedy is not None:
            return f"`{name}={remedying}`: {remedy}"
    return "-"


def _node_after(spec: StepSpec) -> str:
    follower = FOLLOWERS.get(spec.name)
    return _node(STEPS[follower].path[0]) if follower else "idle"


def _set(states: Iterable[str | None] | None) -> str:
    return "any" if states is None else ", ".join(sorted(state or "null" for state in states)) or "(new)"


def _executor(spec: StepSpec) -> str:
    return "a scheduler" if spec.executor is Executor.SCHEDULER else "the host's agent"


def _node(state: TaskState) -> str:
    return state.replace("-", "_")


if __name__ == "__main__":
    PAGE.write_text(page())
