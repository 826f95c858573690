"""One virtual machine, the action in progress on it, and its open move."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from virtfleet_common.records.base import Record
from virtfleet_common.records.catalogue import Flavor, Image
from virtfleet_common.states import PowerState, TaskState, VmState


class Fault(Record):
    """Why an action failed: `code` is constant, `message` for people, `details` (a traceback) for admins."""

    code: str
    message: str
    created: datetime
    details: str = ""
    host: str | None = None
    facts: Mapping[str, Any] = {}


class Step(Record):
    """One step of an action: who executes it (`scheduler` or `compute.<host>`), on what condition, with what."""

    name: str
    executor: str
    expects: Sequence[TaskState]
    args: Mapping[str, Any] = {}
    seq: int = 1

    @property
    def target(self) -> str:
        """The routing key that reaches the executor."""
        return f"{self.executor}.{self.name}"


def step_id(action_id: str, seq: int) -> str:
    """One step among all steps of all actions: the claim that it makes, and its failure, are known by it."""
    return f"{action_id}:{seq}"


class ActionState(Record):
    """The action in progress, inside its instance. `attempt` counts the times its current step was sent; `notes` is
    what executors observed and must not forget; `trace_id` ties every message of the action together (W3C)."""

    id: str
    name: str
    trace_id: str
    user_id: str
    project_id: str
    step: Step
    started_at: datetime
    expires_at: datetime
    original_vm_state: VmState
    sent_at: datetime | None = None
    claimed_by: str | None = None
    progressed_at: datetime
    attempt: int = 1
    notes: Mapping[str, Any] = {}


class Sighting(Record):
    """When, in an agent's own counting, a guest's power state was recorded: reports it numbered lower are older."""

    boot: str
    sequence: int


class NetworkPort(Record):
    """One network card: a libvirt network or a bridge, and the card's address on it."""

    mac: str
    network: str | None = None
    bridge: str | None = None


EVACUATION = "evacuation"


def transfer_token(move_id: str, destination: str | None) -> str:
    """The name of one attempt to get to one destination: a host that was tried before must not be taken for it."""
    return f"{move_id}/{destination}"


class Move(Record):
    """An open move of an instance: from its acceptance to its confirmation or revert, or to the end of an evacuation.

    `claim` is the destination's; `is_shared`: both hosts see the same disk, so nothing is to be sent or removed (None:
    nobody has looked yet, and nothing may be removed either).
    """

    id: str
    type: str
    source: str
    source_claim: str | None
    old_vm_state: VmState
    destination: str | None = None
    claim: str | None = None
    is_shared: bool | None = None
    confirm_by: datetime | None = None

    @property
    def transfer(self) -> str:
        """What the mark and the export at the destination are known by."""
        return transfer_token(self.id, self.destination)


class Instance(Record):
    """One virtual machine: what it is, where it is, and what is being done to it.

    `epoch` grows whenever ownership moves, `rev` with every write; `claim` names the allocation that holds its place.
    `accepted` are the ids of the latest actions: a command that comes again, however late, is known by it.
    """

    id: str = Field(alias="_id")
    name: str
    project_id: str
    user_id: str
    vm_state: VmState
    task_state: TaskState | None = None
    power_state: PowerState = PowerState.NOSTATE
    power_seen: Sighting | None = None
    host: str | None = None
    epoch: int = 0
    claim: str | None = None
    rev: int = 0
    action: ActionState | None = None
    accepted: Sequence[str] = ()
    outbox: Sequence[Mapping[str, Any]] = ()
    flavor: Flavor
    old_flavor: Flavor | None = None
    new_flavor: Flavor | None = None
    move: Move | None = None
    image: Image | None = None
    block_devices: Sequence[Mapping[str, Any]] = ()
    networks: Sequence[NetworkPort] = ()
    metadata: Mapping[str, str] = {}
    hints: Mapping[str, Any] = {}
    availability_zone: str | None = None
    locked_by: str | None = None
    locked_reason: str | None = None
    description: str | None = None
    tags: Sequence[str] = ()
    reservation_id: str | None = None
    created_at: datetime
    updated_at: datetime
    launched_at: datetime | None = None
    deleted_at: datetime | None = None
    fault: Fault | None = None
    progress: int = 0
