"""What instances hold of hosts, and count against the quota of their project."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from virtfleet_common.records.base import Record
from virtfleet_common.records.host import Resources
from virtfleet_common.records.instance import Move, Step
from virtfleet_common.states import VmState


class HolderAction(Record):
    """As much of an action in progress as tells which claims it may be about to hold."""

    id: str
    step: Step


class Holder(Record):
    """As much of an instance as says which places it holds. `outbox`: what was committed and may not be done yet."""

    id: str = Field(alias="_id")
    vm_state: VmState
    host: str | None = None
    claim: str | None = None
    flavor: Resources = Resources()
    old_flavor: Resources | None = None
    new_flavor: Resources | None = None
    move: Move | None = None
    action: HolderAction | None = None
    outbox: Sequence[Mapping[str, Any]] = ()


class QuotaHold(Record):
    """What a move holds beside the amounts of its instance, accepted when the instance's `rev` was about `rank`."""

    amounts: Mapping[str, int]
    rank: int


class QuotaHolder(Record):
    """What one instance counts against its project's quota, once, whatever happens. `rank` is the instance's `rev` at
    the transition that `amounts` come from; `version` grows with every change, which `op` names."""

    id: str = Field(alias="_id")
    project_id: str
    amounts: Mapping[str, int] = {}
    moves: Mapping[str, QuotaHold] = {}
    rank: int = 0
    version: int = 0
    op: str = ""
    changed_at: datetime | None = None
    gone_at: datetime | None = None


class QuotaShift(Record):
    """A holder's change that is counted already and not yet written to the holder: `was` is the version it replaces."""

    op: str
    was: int
    next: QuotaHolder
    delta: Mapping[str, int]


class ProjectQuota(Record):
    """What a project may use (`limits`: its own, where they differ from the fleet's) and what it uses. `pending` are
    the changes under way, by holder: at rest there are none, and `used` is the sum over the project's holders."""

    id: str = Field(alias="_id")
    limits: Mapping[str, int] = {}
    used: Mapping[str, int] = {}
    pending: Mapping[str, QuotaShift] = {}
