"""The records the store keeps, as frozen models: what a document means, field by field.

Sizes are in the unit their name says (`ram_mb`, `disk_gb`); times are aware UTC.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from virtfleet_common.states import HostState, PowerState, TaskState, VmState


class Record(BaseModel):
    """A document of the store. Fields this version does not know are ignored, so that versions can be mixed."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    def document(self) -> dict[str, Any]:
        """This record as a MongoDB document."""
        return self.model_dump(by_alias=True)


class Flavor(Record):
    """A size: vCPUs, MiB of RAM, GiB of disk. An instance keeps its own copy, so a deleted flavor harms nobody."""

    id: str = Field(alias="_id")
    name: str
    vcpus: int = Field(ge=1)
    ram_mb: int = Field(ge=1)
    disk_gb: int = Field(ge=0, default=0)
    is_public: bool = True
    is_disabled: bool = False
    description: str | None = None
    extra_specs: Mapping[str, str] = {}


class Image(Record):
    """A catalogue entry. `checksum` is `sha256:<hex>` of the file at `location` (a path, `file:` or `http(s):` URL)."""

    id: str = Field(alias="_id")
    name: str
    location: str
    checksum: str
    disk_format: str = "qcow2"
    size: int = 0
    min_disk_gb: int = 0
    min_ram_mb: int = 0
    visibility: str = "public"
    project_id: str | None = None
    properties: Mapping[str, str] = {}
    created_at: datetime
    updated_at: datetime


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


class Resources(Record):
    """An amount of what a host can give."""

    vcpus: float = 0
    ram_mb: float = 0
    disk_gb: float = 0


class Allocation(Record):
    """What one claim holds of a host. `claim` names it once and for all: `<action id>:<step seq>`; `group` is the
    server group of its instance."""

    claim: str
    instance_id: str
    vcpus: int
    ram_mb: int
    disk_gb: int
    group: str | None = None


class HostFailure(Record):
    """A guest could not be built on a host; `id` names the attempt, so that it counts once."""

    id: str
    at: datetime


class FenceProof(Record):
    """The proof that a lost host can no longer run its guests. `proof`: what it rests on; `detail`: for people;
    `is_told`: it was announced."""

    proof: str
    at: datetime
    detail: str = ""
    is_told: bool = False


class Fencing(Record):
    """The attempts to fence a host in the loss of `lost_at`. `by` is at it, until `until` at the longest; without `by`,
    the next attempt may begin then. `error` and `output`: why the latest failed."""

    lost_at: datetime | None
    attempts: int
    by: str | None
    until: datetime
    error: str = ""
    output: str = ""


class Host(Record):
    """One hypervisor: `total` is what it has, `limits` what may be allocated, `free` the limits less `allocations`,
    `placed` their number; `failures` are the latest attempts to build a guest that failed here.

    `boot_id` None: the host was lost, and is not back until its agent registers anew. `fence` is set while it is down
    and surely off, `fencing` when that was tried; `told` is the state that was announced last.
    """

    id: str = Field(alias="_id")
    uuid: str
    boot_id: str | None = None
    sequence: int = 0
    state: HostState = HostState.UP
    is_enabled: bool = True
    is_responsive: bool = True
    disabled_reason: str | None = None
    is_forced_down: bool = False
    fence: FenceProof | None = None
    fencing: Fencing | None = None
    lost_at: datetime | None = None
    told: HostState | None = None
    last_seen: datetime | None = None
    total: Resources = Resources()
    limits: Resources = Resources()
    free: Resources = Resources()
    allocations: Sequence[Allocation] = ()
    placed: int = 0
    failures: Sequence[HostFailure] = ()
    availability_zone: str = "nova"
    arch: str = ""
    hypervisor_type: str = "QEMU"
    hypervisor_version: int = 0
    hypervisor_hostname: str = ""
    host_ip: str = "127.0.0.1"
    guests: int = 0
    created_at: datetime | None = None

    @property
    def used(self) -> Resources:
        """What is allocated: the limits less what is free."""
        return Resources(
            vcpus=self.limits.vcpus - self.free.vcpus,
            ram_mb=self.limits.ram_mb - self.free.ram_mb,
            disk_gb=self.limits.disk_gb - self.free.disk_gb,
        )


class Pin(Record):
    """A claim of a member of an affinity group ties the group to its host. `by` names the attempt that made it."""

    claim: str
    instance_id: str
    host: str
    by: str
    at: datetime


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


class ServerGroup(Record):
    """Instances that are to be kept together or apart. `policy`: affinity, anti-affinity, soft-affinity,
    soft-anti-affinity; `max_server_per_host` counts for anti-affinity alone, `pins` are written for affinity alone."""

    id: str = Field(alias="_id")
    name: str
    project_id: str
    user_id: str
    policy: str
    max_server_per_host: int = Field(1, ge=1)
    pins: Sequence[Pin] = ()
    created_at: datetime


class Aggregate(Record):
    """Hosts with metadata in common; the metadata key `availability_zone` makes it an availability zone."""

    id: int = Field(alias="_id")
    uuid: str
    name: str
    hosts: Sequence[str] = ()
    metadata: Mapping[str, str] = {}
    created_at: datetime
    updated_at: datetime


class Migration(Record):
    """One move of an instance (Nova's migration). `type`: resize, migration, evacuation; `number` is its id in the API.

    `rank` orders what is written of it: a write of a lower rank than the stored one is an old one, and changes nothing.
    """

    id: str = Field(alias="_id")
    number: int
    instance_id: str
    project_id: str
    user_id: str
    type: str
    status: str
    rank: int = 0
    source: str
    destination: str | None = None
    old_flavor_id: str
    new_flavor_id: str
    created_at: datetime
    updated_at: datetime


class Cleanup(Record):
    """Work that a host owes: what a move left there has to go, whenever the host is there to do it. Then `claim`, which
    holds the place of what was left, is given back. `is_shared`: the disk is another host's too, and stays (None: the
    host has to look). `is_completing`: the migration is completed when this is done."""

    id: str = Field(alias="_id")
    host: str
    instance_id: str
    claim: str | None = None
    is_shared: bool | None = None
    is_completing: bool = False
    migration_id: str | None = None
    created_at: datetime


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


class ActionEvent(Record):
    """One step of an action as people read it (Nova's instance action event). `result`: Success, Error, superseded."""

    event: str = ""
    start: datetime | None = None
    finish: datetime | None = None
    result: str | None = None
    host: str | None = None
    traceback: str | None = None
    details: str | None = None


class ActionRecord(Record):
    """The history of one accepted action (Nova's instance action); `finish` is set when it ended, however it ended."""

    id: str = Field(alias="_id")
    instance_id: str = ""
    action: str = ""
    user_id: str | None = None
    project_id: str | None = None
    start: datetime | None = None
    finish: datetime | None = None
    result: str | None = None
    message: str | None = None
    explanation: Mapping[str, Any] | None = None
    events: Mapping[str, ActionEvent] = {}


FLEET = "fleet"


class Fleet(Record):
    """The fleet that a database belongs to: its one document, `_id` FLEET. A host belongs to one fleet for good."""

    id: str = Field(alias="_id")
    uuid: str


class Token(Record):
    """Who a token speaks for. `_id` is the SHA-256 of the token: the token itself is stored nowhere."""

    id: str = Field(alias="_id")
    user_id: str
    user_name: str
    project_id: str
    project_name: str
    roles: Sequence[str]
    expires_at: datetime | None = None


class AmqpUser(Record):
    """Who a broker user speaks for: the `user_id` property of a command, which the broker verified."""

    id: str = Field(alias="_id")
    user_id: str
    project_id: str
    roles: Sequence[str]


class Reply(Record):
    """The answer to a command message, kept so that a repeated `message_id` gets the first answer."""

    id: str = Field(alias="_id")
    type: str
    data: Mapping[str, Any]
    at: datetime
