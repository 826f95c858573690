"""The `Hypervisor` port on libvirt: what each call of the port means in libvirt calls, one thread hop each."""

import asyncio
import platform
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial

import libvirt
from virtfleet_common.errors import HypervisorFault, HypervisorTimeout
from virtfleet_common.ports import Guest, GuestEvent, HypervisorFacts
from virtfleet_common.records import Image, Instance, Resources
from virtfleet_common.settings import AgentSettings
from virtfleet_common.states import PowerState
from virtfleet_common.volumes import Device

from virtfleet_compute_agent.hypervisor import console, disks, hotplug, networks
from virtfleet_compute_agent.hypervisor.connection import is_kvm_usable
from virtfleet_compute_agent.hypervisor.disk_moves import DiskMoves
from virtfleet_compute_agent.hypervisor.domain_xml import Platform, build_domain, mark_of
from virtfleet_compute_agent.hypervisor.events import EventHub
from virtfleet_compute_agent.hypervisor.guests import GuestReader
from virtfleet_compute_agent.hypervisor.layout import has_root_disk

_RECHECK = 1.0  # seconds: how long a missed event can delay wait_for_power_state
_RUNNING = frozenset({PowerState.RUNNING, PowerState.BLOCKED})


class LibvirtHypervisor(DiskMoves):
    """One host through libvirt: `qemu:///system`, `qemu:///embed?root=DIR`, `test:///default` or `test:///FILE`.

    The test driver has no files: disks, images and consoles are skipped there, capacity comes from the settings.
    """

    def __init__(self, settings: AgentSettings) -> None:
        super().__init__(settings)
        self._guests = GuestReader()
        self._platform = Platform("test", "x86_64")
        self._hub: EventHub | None = None

    async def open(self) -> None:
        """Connect, and have libvirt probe QEMU now (seconds, once) rather than in the first guest's way."""
        hub = self._hub = EventHub()
        await self._call("open", lambda: self._connect(hub))

    async def close(self) -> None:
        """Let go of the connection; QEMU guests keep running."""
        if self._hub is not None:
            self._hub.close()
        with suppress(HypervisorTimeout):  # what hangs stays behind on its daemon thread
            await self._call("close", self._connection.close)
        for pool in (self._steps, self._listing, self._files):
            pool.close()

    async def facts(self) -> HypervisorFacts:
        """Capacity and identity of the host; the settings' capacity on a simulated one."""
        return await self._call("facts", self._facts)

    async def observe(self, instance_id: str) -> Guest | None:
        """The guest, or None when libvirt surely has none of that id."""
        return await self._call("observe", lambda: self._observe(instance_id))

    async def list_guests(self) -> Sequence[Guest]:
        """Every guest, in two bulk calls whatever their number, on a thread of its own."""
        work = self._guarded("list_guests", lambda: self._guests.list_all(self._connection.get()))
        return await self._listing.run(work, self._settings.listing_timeout, "list_guests")

    async def fetch_image(self, image: Image) -> None:
        """Have the image, and the kernel and initrd it names, in the cache."""
        if not self._connection.is_simulated:
            await self._images.fetch(image)

    async def create_disk(self, instance: Instance, *, is_anew: bool = False) -> None:
        """Have the root disk and, again, what it lies over: a backing file may have been lost."""
        if not self._connection.is_simulated:
            await self._disks.create(instance, is_anew=is_anew)

    async def has_disk(self, instance: Instance) -> bool:
        """Whether the root disk, if the instance has one, is in its folder; always on a simulated host."""
        if self._connection.is_simulated or not has_root_disk(instance):
            return True
        return await self._file_call("has_disk", self._layout.disk(instance.id).exists)

    async def lost_volumes(self, instance: Instance) -> Sequence[str]:
        """The paths of the instance's block devices whose source is gone."""
        if self._connection.is_simulated or not instance.block_devices:
            return ()
        return await self._file_call("lost_volumes", lambda: disks.lost_volumes(instance))

    async def plug_in(self, instance_id: str, device: Device) -> None:
        """Have a volume in the guest and its definition; nothing to do on a simulated host."""
        if not self._connection.is_simulated:
            await self._call("plug_in", lambda: hotplug.plug_in(self._find(instance_id), device))

    async def unplug(self, instance_id: str, device: Device) -> None:
        """Have a volume out of both, asking the guest for it again and again up to `detach_timeout`."""
        if self._connection.is_simulated:
            return
        deadline = time.monotonic() + self._settings.detach_timeout
        while not await self._call("unplug", lambda: hotplug.ask_back(self._find(instance_id), device)):
            left = deadline - time.monotonic()
            if left <= 0:
                raise HypervisorFault("the guest does not let go of it", operation="unplug", code="not_released")
            await asyncio.sleep(min(self._settings.detach_retry, left))

    async def missing_networks(self, instance: Instance) -> Sequence[str]:
        """The instance's networks and bridges that this host does not have; none on a simulated host."""
        if self._connection.is_simulated or not instance.networks:
            return ()
        return await self._call("missing_networks", lambda: networks.missing(self._connection.get(), instance))

    async def define(self, instance: Instance) -> None:
        """Define the domain from the record; an existing definition is replaced."""
        await self._call("define", lambda: self._define(instance))

    async def start(self, instance_id: str) -> None:
        """Start the guest (libvirt prefers its managed save), let a paused one go on, wait until it runs."""
        if await self._call("start", lambda: self._start(instance_id)) in _RUNNING:
            return
        guest = await self.wait_for_power_state(instance_id, _RUNNING, self._settings.start_timeout)
        if guest is None or guest.power_state not in _RUNNING:
            raise HypervisorFault("the guest was started and does not run", operation="start", code="not_running")

    async def request_shutdown(self, instance_id: str) -> None:
        """Press the ACPI power button; nothing to do when the guest is off."""
        await self._call("request_shutdown", lambda: self._request_shutdown(instance_id))

    async def destroy(self, instance_id: str) -> None:
        """Power off at once; fine when it is off or gone."""
        await self._call("destroy", lambda: self._destroy(instance_id))

    async def undefine(self, instance_id: str) -> None:
        """Forget the definition and any managed save; fine when there is none."""
        await self._call("undefine", lambda: self._undefine(instance_id))

    async def pause(self, instance_id: str) -> None:
        """Stop the guest's processors."""
        await self._call("pause", lambda: self._pause(instance_id))

    async def unpause(self, instance_id: str) -> None:
        """Let the guest's processors go on."""
        await self._call("unpause", lambda: self._unpause(instance_id))

    async def save(self, instance_id: str) -> None:
        """Suspend to disk; libvirt keeps the file. Takes as long as writing the guest's memory does."""
        await self._call("save", lambda: self._save(instance_id), timeout=self._settings.action_timeout)

    async def delete_files(self, instance_id: str) -> None:
        """Remove the instance's folder. HypervisorFault on an id that is no UUID, on every driver."""
        self._layout.instance(instance_id)
        if not self._connection.is_simulated:
            await self._exports.forget(instance_id)
            await self._file_call("delete_files", lambda: self._delete_files(instance_id))

    async def console_output(self, instance_id: str, length: int | None) -> str:
        """The last lines of the console, across starts; "" on a simulated host."""
        log = self._layout.console(instance_id)
        if self._connection.is_simulated:
            return ""
        return await self._file_call("console_output", lambda: console.read_tail(log, length))

    async def wait_for_power_state(
        self, instance_id: str, wanted: frozenset[PowerState], timeout: float
    ) -> Guest | None:
        """The guest once its state is in `wanted` (gone counts as NOSTATE), or as it is after `timeout` seconds.

        Looks again on every event of the guest, and each second in case one was missed.
        """
        deadline = time.monotonic() + timeout
        with self._live_hub().watch(instance_id) as changed:
            while True:
                changed.clear()
                guest = await self.observe(instance_id)
                left = deadline - time.monotonic()
                if left <= 0 or (guest.power_state if guest else PowerState.NOSTATE) in wanted:
                    return guest
                await _wait(changed, min(left, _RECHECK))

    def events(self) -> AsyncIterator[GuestEvent]:
        """Lifecycle changes from this call on, until close."""
        return self._live_hub().subscribe()

    # What runs in the threads. One method per call of the port: already so? then make it so.

    def _connect(self, hub: EventHub) -> None:
        self._connection.open(hub)
        live = self._connection.get()
        if not self._connection.is_simulated:
            self._images.remove_leftovers()
            live.getVersion()
            self._platform = Platform(self._virt_type(), live.getInfo()[0])

    def _virt_type(self) -> str:
        wanted = self._settings.virt_type
        return wanted if wanted != "auto" else ("kvm" if is_kvm_usable() else "qemu")

    def _facts(self) -> HypervisorFacts:
        live, settings = self._connection.get(), self._settings
        arch, ram_mb, vcpus = live.getInfo()[:3]
        if self._connection.is_simulated:
            vcpus, ram_mb, disk_gb = settings.simulated_vcpus, settings.simulated_ram_mb, settings.simulated_disk_gb
            arch = platform.machine()
        else:
            self._layout.instances.mkdir(mode=0o711, parents=True, exist_ok=True)
            disk_gb = shutil.disk_usage(self._layout.instances).total // 1024**3
        total = Resources(vcpus=vcpus, ram_mb=ram_mb, disk_gb=disk_gb)
        return HypervisorFacts(live.getHostname(), live.getType(), live.getVersion(), arch, total)

    def _observe(self, instance_id: str) -> Guest | None:
        domain = self._find(instance_id)
        return self._guests.read(domain) if domain is not None else None

    def _delete_files(self, instance_id: str) -> None:
        disks.delete_folder(self._layout.instance(instance_id))
        self._layout.transfer_note(instance_id).unlink(missing_ok=True)

    def _define(self, instance: Instance) -> None:
        xml = build_domain(instance, self._layout, self._platform)
        if not self._connection.is_simulated:
            self._layout.instance(instance.id).mkdir(mode=0o711, parents=True, exist_ok=True)
        self._connection.get().defineXML(xml)
        self._guests.remember(instance.id, mark_of(instance))

    def _start(self, instance_id: str) -> PowerState:
        domain = self._get(instance_id)
        if not domain.isActive() and not self._connection.is_simulated:
            console.rotate(self._layout.console(instance_id))
        _make_so(domain.isActive, domain.create)
        if _power_state(domain) is PowerState.PAUSED:
            domain.resume()
        return _power_state(domain)

    def _request_shutdown(self, instance_id: str) -> None:
        domain = self._get(instance_id)
        _make_so(lambda: not domain.isActive(), domain.shutdown)

    def _destroy(self, instance_id: str) -> None:
        domain = self._find(instance_id)
        if domain is not None:
            _make_so(lambda: not domain.isActive(), domain.destroy)

    def _undefine(self, instance_id: str) -> None:
        domain = self._find(instance_id)
        if domain is None:
            return
        flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        if not self._connection.is_simulated:  # the test driver knows neither of these
            flags |= libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        if domain.isActive():
            raise HypervisorFault("the guest runs", operation="undefine", code=libvirt.VIR_ERR_OPERATION_INVALID)
        domain.undefineFlags(flags)
        self._guests.forget(instance_id)

    def _pause(self, instance_id: str) -> None:
        domain = self._get(instance_id)
        _make_so(lambda: _power_state(domain) is PowerState.PAUSED, domain.suspend)

    def _unpause(self, instance_id: str) -> None:
        domain = self._get(instance_id)
        _make_so(lambda: _power_state(domain) in _RUNNING, domain.resume)

    def _save(self, instance_id: str) -> None:
        domain = self._get(instance_id)
        _make_so(lambda: bool(domain.hasManagedSaveImage()) and not domain.isActive(), partial(domain.managedSave, 0))

    def _live_hub(self) -> EventHub:
        if self._hub is None:
            raise HypervisorFault("the hypervisor is not open", operation="events", code="closed")
        return self._hub


def _make_so(is_so: Callable[[], object], make: Callable[[], object]) -> None:
    """Make it so unless it is. What was made so by somebody else in between is no failure."""
    if is_so():
        return
    try:
        make()
    except libvirt.libvirtError:
        if not is_so():
            raise


def _power_state(domain: libvirt.virDomain) -> PowerState:
    return PowerState(domain.state()[0])


async def _wait(changed: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await changed.wait()
    except TimeoutError:
        return
