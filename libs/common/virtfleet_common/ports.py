"""The world behind interfaces: what the decision core may ask of a clock, a bus, a store, a hypervisor and a fence.

Each port has a real adapter and, where tests want one, an in-memory twin that passes the same contract suite.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from virtfleet_common.records import Host, Image, Instance, Resources
from virtfleet_common.states import PowerState
from virtfleet_common.volumes import Device


class Clock(Protocol):
    """Wall-clock time, aware UTC."""

    def now(self) -> datetime:
        """The current time."""
        ...


class Fence(Protocol):
    """A way to be sure that a lost host runs nothing any more. A plug-in (entry point `virtfleet.fences`), made with
    power_sync's settings as its only argument."""

    name: str
    """What its proofs are called."""
    is_drastic: bool
    """Whether it does something to the machine: then `auto_loss_limit` limits it."""

    async def prove(self, host: Host) -> str:
        """Have the host off, and see it off; says how that was seen, for people. It may be asked again, and given up in
        the middle (cancelled). Raises FenceFault while there is no proof."""
        ...


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest as the hypervisor shows it. `domain_id` is None when it does not run; epoch and action come from the
    metadata that Virtfleet wrote into the domain (0 and None in a guest that Virtfleet did not define)."""

    instance_id: str
    power_state: PowerState
    domain_id: int | None
    epoch: int
    action_id: str | None
    is_ours: bool = True
    has_managed_save: bool = False


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """A lifecycle change that the hypervisor reported; `power_state` NOSTATE means undefined."""

    instance_id: str
    power_state: PowerState


@dataclass(frozen=True, slots=True)
class HypervisorFacts:
    """What a hypervisor says of itself. `version` is libvirt's number (major*1,000,000 + minor*1,000 + release)."""

    hostname: str
    hypervisor_type: str
    version: int
    arch: str
    total: Resources


@dataclass(frozen=True, slots=True)
class Export:
    """Where a host waits for an instance's disk, and the key (hex) without which it talks to nobody.

    JSON-able both ways: `asdict(export)`, `Export(**facts)`. Port 0: the instance has no disk of its own to receive.
    """

    address: str
    port: int
    psk_identity: str
    key: str
    token: str


class Hypervisor(Protocol):
    """One host's hypervisor. Every call has a deadline; a call past it raises HypervisorTimeout (outcome unknown).

    Calls that change something are idempotent: what is already so is left so. HypervisorFault on any other failure.
    """

    async def open(self) -> None:
        """Connect, start the event loop's thread. Raises HypervisorFault."""
        ...

    async def close(self) -> None:
        """Let go of the connection; guests keep running where the driver allows it."""
        ...

    async def facts(self) -> HypervisorFacts:
        """Capacity and identity of the host."""
        ...

    @property
    def is_responsive(self) -> bool:
        """False while calls that passed their deadline hold every worker thread, or the listing's own."""
        ...

    async def observe(self, instance_id: str) -> Guest | None:
        """The guest, or None when the hypervisor surely has none of that id. Raises when it cannot tell."""
        ...

    async def list_guests(self) -> Sequence[Guest]:
        """Every guest, running or not, in one bulk call, on a thread that step work cannot occupy."""
        ...

    async def fetch_image(self, image: Image) -> None:
        """Have the base image in the cache, verified by its checksum. Raises ImageFault; a bad file is not kept."""
        ...

    async def create_disk(self, instance: Instance, *, is_anew: bool = False) -> None:
        """Have the instance's disk (a qcow2 overlay on the cached image, or empty without one), grown to the flavor.

        HypervisorFault `no_disk` if the instance was launched before and its disk is not here, unless it `is_anew`.
        """
        ...

    async def has_disk(self, instance: Instance) -> bool:
        """Whether all that the instance needs of its own is in its directory here; True on a simulated host."""
        ...

    async def lost_volumes(self, instance: Instance) -> Sequence[str]:
        """The paths of the instance's files and block devices that surely are not here. Raises when it cannot tell."""
        ...

    async def plug_in(self, instance_id: str, device: Device) -> None:
        """Have a volume in the guest, running or not, and in its definition. Fine if the host has no such guest."""
        ...

    async def unplug(self, instance_id: str, device: Device) -> None:
        """Have a volume out of both. HypervisorFault `not_released` if the running guest keeps it for
        `detach_timeout` s; it may still let go later."""
        ...

    async def missing_networks(self, instance: Instance) -> Sequence[str]:
        """The libvirt networks and bridges of the instance that this host surely lacks. Raises when it cannot tell."""
        ...

    async def define(self, instance: Instance) -> None:
        """Define the domain from the record alone (flavor, image, devices, networks), with epoch and action id."""
        ...

    async def start(self, instance_id: str) -> None:
        """Start the guest, from its managed save if it has one; wait until it runs."""
        ...

    async def request_shutdown(self, instance_id: str) -> None:
        """Press the ACPI power button once. The guest may ignore it."""
        ...

    async def destroy(self, instance_id: str) -> None:
        """Power the guest off at once; its disk and definition stay."""
        ...

    async def undefine(self, instance_id: str) -> None:
        """Forget the definition and any managed save; the disk stays. The guest must not run."""
        ...

    async def pause(self, instance_id: str) -> None:
        """Stop the guest's processors."""
        ...

    async def unpause(self, instance_id: str) -> None:
        """Let the guest's processors go on."""
        ...

    async def save(self, instance_id: str) -> None:
        """Suspend the guest to disk (managed save)."""
        ...

    async def delete_files(self, instance_id: str) -> None:
        """Remove the instance's directory: disk, console log and its rotations; and end an export of it, if any. What
        was set aside stays."""
        ...

    async def open_export(self, instance: Instance, token: str) -> Export:
        """Destination: wait for the instance's disk, for `transfer_timeout` s at most, whatever becomes of the agent.

        The same token gets the same export while that lives; otherwise a fresh and empty one with a new key.
        """
        ...

    async def close_export(
        self, instance_id: str, *, adopt: bool, size_bytes: int = 0, token: str | None = None
    ) -> None:
        """Destination: listen no longer. `adopt`: what arrived becomes the instance's disk, `size_bytes` large as
        `send_disk` said (0: the instance has no disk of its own); otherwise it is deleted. With a `token`, an
        export that was opened under another is left alone: a late clean-up must not take a later move's disk.

        Adopting twice is fine. HypervisorFault `disk_exists` if the instance had a disk here already (nothing is ever
        overwritten), `no_disk` if nothing is there.
        """
        ...

    async def send_disk(
        self, instance: Instance, export: Export, on_progress: Callable[[int], Awaitable[None]] | None = None
    ) -> int:
        """Source: send the disk that was set aside to the export, flattened and sparse; its size in bytes, for
        `close_export`. Once it returns, the destination has everything on stable storage. Doing it again is fine.

        `on_progress` is awaited with each new whole percent. HypervisorFault with one of the codes `transfer_stalled`,
        `transfer_refused` (nobody listens), `transfer_denied` (wrong key), `destination_full`, `transfer_failed`,
        `no_disk`. Cancelling it ends the copy; so does the end of this process.
        """
        ...

    async def set_aside(self, instance_id: str) -> None:
        """Source: keep the instance's directory as `<id>_resize`. The guest must not run (HypervisorFault `running`).

        HypervisorFault `no_disk` if there is no directory, `aside_exists` if an earlier move's leftover is still there.
        On shared storage there is nothing to set aside: the directory is the destination's too.
        """
        ...

    async def put_back(self, instance_id: str) -> None:
        """Source: undo `set_aside`. HypervisorFault `no_disk` if there is neither directory, `disk_exists` if the
        instance has a disk in its own place as well."""
        ...

    async def remove_aside(self, instance_id: str) -> None:
        """Source: delete what was set aside, if anything."""
        ...

    async def probe_shared(self, token: str) -> None:
        """Leave a mark among the instances' directories, for another host to see if it shares them."""
        ...

    async def sees_probe(self, token: str) -> bool:
        """Whether another host's mark shows here: the storage is shared, and its disks are there.

        True on a simulated host. Raises when it cannot tell.
        """
        ...

    async def remove_probe(self, token: str) -> None:
        """Remove the mark, if it is there."""
        ...

    async def grow_disk(self, instance: Instance) -> None:
        """Have the disk as large as the record's `flavor` says; never smaller than it is. The guest must not run."""
        ...

    async def console_output(self, instance_id: str, length: int | None) -> str:
        """The last `length` lines of the console log (None: the last 100 KiB), rotations included; "" if none."""
        ...

    async def wait_for_power_state(
        self, instance_id: str, wanted: frozenset[PowerState], timeout: float
    ) -> Guest | None:
        """The guest once its power state is in `wanted`, or what it is after `timeout` seconds. Event-driven."""
        ...

    def events(self) -> AsyncIterator[GuestEvent]:
        """Lifecycle changes as they come, until closed."""
        ...
