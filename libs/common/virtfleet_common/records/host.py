"""Hosts, what is claimed of them, and what groups hosts and guests."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import Field

from virtfleet_common.records.base import Record
from virtfleet_common.states import HostState


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
