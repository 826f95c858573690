"""What the agent does, one module a workflow, each step the same recipe: observe, already so?, make it so, done."""

from collections.abc import Mapping
from functools import partial

from virtfleet_common.executor import StepHandler

from virtfleet_compute_agent.steps import create, delete, power, reboot
from virtfleet_compute_agent.steps.context import HostContext


def handlers(host: HostContext) -> Mapping[str, StepHandler]:
    """The steps this agent executes, by name."""
    steps = {
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
    }
    return {name: partial(step, host) for name, step in steps.items()}
