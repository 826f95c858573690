"""What the agent does, one module a workflow, each step the same recipe: observe, already so?, make it so, done."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from virtfleet_common.executor import StepHandler, StepRun
from virtfleet_common.outcomes import Outcome

from virtfleet_compute_agent.steps import create, delete, evacuate, power, reboot, resize, volumes
from virtfleet_compute_agent.steps.context import HostContext


def handlers(host: HostContext) -> Mapping[str, StepHandler]:
    """The steps this agent executes, by name."""
    steps: Mapping[str, Callable[[HostContext, StepRun], Awaitable[Outcome]]] = {
        "create": create.create,
        "delete": delete.delete,
        "reboot_soft": reboot.soft,
        "reboot_hard": reboot.hard,
        "start": power.start,
        "stop": power.stop,
        "pause": power.pause,
        "unpause": power.unpause,
        "suspend": power.suspend,
        "resume": power.resume,
        "attach_volume": volumes.attach,
        "detach_volume": volumes.detach,
        "prepare": resize.prepare,
        "move": resize.send,
        "finish": resize.finish,
        "revert": resize.revert,
        "finish_revert": resize.finish_revert,
        "shelter": evacuate.shelter,
    }
    return {name: partial(step, host) for name, step in steps.items()}
