"""What is to be done when a guest is not what its record wants: the settings say, an instance's metadata may differ.

No I/O. A remedy that does not last is not tried in a hot loop: each one within an hour doubles the pause to the next.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from virtfleet_common.beginning import SYSTEM
from virtfleet_common.records import ActionRecord, Instance
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import VmState

_NAMESPACE = UUID("0d3f6f0e-3f0b-4d6c-9a53-8c1c7a1f5b7e")
POLICIES: Mapping[str, tuple[str, str]] = {
    "on_guest_poweroff": ("stop", "restart"),
    "on_unexpected_running": ("adopt", "enforce"),
}
"""Each policy, by its setting and metadata key: what it adopts by, and what it remedies by."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of one instance. `unknown`: values in its metadata that are none."""

    on_guest_poweroff: str = "stop"
    on_unexpected_running: str = "adopt"
    unknown: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, metadata: Mapping[str, str], settings: PowerSyncSettings) -> "Policies":
        """What an instance's metadata says; what it does not say, or says wrongly, is as the settings have it."""
        default = {name: getattr(settings, name) for name in POLICIES}
        said = {name: metadata[name] for name in POLICIES if name in metadata}
        known = {name: value for name, value in said.items() if value in POLICIES[name]}
        unknown = tuple((name, value) for name, value in said.items() if name not in known)
        return cls(**{**default, **known}, unknown=unknown)

    def remedy(self, wanted: VmState, found: VmState) -> str | None:
        """The action that makes of a guest what the record wants; None: what was found is adopted."""
        match wanted, found:
            case VmState.ACTIVE, VmState.STOPPED if self.on_guest_poweroff == "restart":
                return "start"
            case VmState.STOPPED, VmState.ACTIVE | VmState.PAUSED if self.on_unexpected_running == "enforce":
                return "stop"
        return None


ADOPTING = Policies()


def action_id(instance: Instance, remedy: str) -> str:
    """The same for everyone who has read the same revision, so that two replicas begin one action."""
    return f"req-{uuid5(_NAMESPACE, f'{instance.id} {remedy} {instance.rev}')}"


def due_at(history: Iterable[ActionRecord], remedy: str, now: datetime, settings: PowerSyncSettings) -> datetime:
    """When a remedy may be begun (`now`: at once), by the actions of the instance."""
    since = now - timedelta(seconds=settings.policy_memory)
    mine = [one for one in history if one.user_id == SYSTEM and one.action == remedy]
    starts = [one.start for one in mine if one.start is not None and one.start > since]
    if not starts:
        return now
    return max(starts) + timedelta(seconds=settings.policy_pause * 2 ** (len(starts) - 1))
