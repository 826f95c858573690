"""What every step of a host works with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from virtfleet_common.errors import Faulty, HypervisorFault
from virtfleet_common.executor import StepRun
from virtfleet_common.ports import Guest, Hypervisor
from virtfleet_common.records import Instance, Move
from virtfleet_common.settings import AgentSettings
from virtfleet_common.states import PowerState

from virtfleet_compute_agent.storage import Storage

RUNNING = frozenset({PowerState.RUNNING, PowerState.BLOCKED})
OFF = frozenset({PowerState.SHUTOFF, PowerState.CRASHED, PowerState.NOSTATE})


@dataclass(frozen=True, slots=True)
class HostContext:
    """The hypervisor of this host, its storage, the agent's settings, `clean`, which does what the host owes for an
    instance, and `read`, which reads an instance's record as it is now."""

    hypervisor: Hypervisor
    storage: Storage
    settings: AgentSettings
    clean: Callable[[str], Awaitable[None]]
    read: Callable[[str], Awaitable[Instance | None]]

    async def power_of(self, instance_id: str) -> PowerState | None:
        """The power state of a guest, NOSTATE when there is none; None when nobody can tell."""
        try:
            return power_state(await self.hypervisor.observe(instance_id))
        except HypervisorFault:
            return None


class NoMove(Faulty):
    """A step of a move found no open move in the record."""

    code = "no_move"


def open_move(run: StepRun) -> Move:
    """The move that the step is a part of. Raises NoMove."""
    if run.instance.move is None:
        raise NoMove(f"instance {run.instance.id} is not being moved")
    return run.instance.move


async def start_guest(host: HostContext, run: StepRun) -> None:
    """Start the guest of a step that is surely still ours: the way every step starts one. Raises LostOwnership."""
    await run.prove(host.settings.isolation_after / 2)
    await host.hypervisor.start(run.instance.id)


def power_state(guest: Guest | None) -> PowerState:
    """The power state to record for what was observed."""
    return guest.power_state.shown if guest else PowerState.NOSTATE


def is_running(guest: Guest | None) -> bool:
    """Whether a guest is there and its processors run."""
    return guest is not None and guest.power_state in RUNNING


def is_made_by(guest: Guest | None, action_id: str) -> bool:
    """Whether this guest was defined by the action, and runs: the action has done its work already."""
    return guest is not None and is_running(guest) and guest.action_id == action_id
