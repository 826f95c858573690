"""What every step of a host works with."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from virtfleet_common.errors import HypervisorFault
from virtfleet_common.ports import Guest, Hypervisor
from virtfleet_common.settings import AgentSettings
from virtfleet_common.states import PowerState

RUNNING = frozenset({PowerState.RUNNING, PowerState.BLOCKED})
OFF = frozenset({PowerState.SHUTOFF, PowerState.CRASHED, PowerState.NOSTATE})


@dataclass(frozen=True, slots=True)
class HostContext:
    """The hypervisor of this host, the agent's settings, and `clean`, which does what the host owes for an instance."""

    hypervisor: Hypervisor
    settings: AgentSettings
    clean: Callable[[str], Awaitable[None]]

    async def power_of(self, instance_id: str) -> PowerState | None:
        """The power state of a guest, NOSTATE when there is none; None when nobody can tell."""
        try:
            return power_state(await self.hypervisor.observe(instance_id))
        except HypervisorFault:
            return None


def power_state(guest: Guest | None) -> PowerState:
    """The power state to record for what was observed."""
    return guest.power_state.shown if guest else PowerState.NOSTATE


def is_running(guest: Guest | None) -> bool:
    """Whether a guest is there and its processors run."""
    return guest is not None and guest.power_state in RUNNING


def is_made_by(guest: Guest | None, action_id: str) -> bool:
    """Whether this guest was defined by the action, and runs: the action has done its work already."""
    return guest is not None and is_running(guest) and guest.action_id == action_id
