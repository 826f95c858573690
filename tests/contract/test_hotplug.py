"""Volumes in guests: on libvirt's test driver, which takes them into a definition alone, and on a real QEMU driver."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest
from lxml import etree
from virtfleet_common.errors import HypervisorFault
from virtfleet_common.records import Flavor, Instance
from virtfleet_common.states import PowerState
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_local.guest_image import catalogue

from tests.hypervisors import an_instance, opened, settings
from tests.world import polling

SECRET = "6f1f3e55-5d5c-4a53-9d3b-7b9f6f6c2a10"
TINY = Flavor(_id="1", name="m1.tiny", vcpus=1, ram_mb=96, disk_gb=1)
SOURCES: list[dict[str, Any]] = [
    {"type": "file", "path": "/srv/a", "format": "qcow2"},
    {"type": "block", "path": "/dev/mapper/a"},
    {
        "type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "mon1", "port": 6789}, {"name": "mon2"}],
        "user": "vf", "secret_uuid": SECRET,
    },
    {
        "type": "iscsi", "iqn": "iqn.2026-01.org.example:a", "lun": 2, "host": "san", "port": 3260, "user": "vf",
        "secret_uuid": SECRET,
    },
]  # fmt: skip


def a_device(source: dict[str, Any], number: int = 1) -> dict[str, Any]:
    plain = {"id": f"volume-{number}", "attachment_id": f"a{number}", "target": f"vd{'abcdefg'[number]}"}
    return {**source, **plain, "is_readonly": False}


@pytest.fixture
def live(embed_root: Path) -> Iterator[libvirt.virConnect]:
    """A look at the QEMU driver past the adapter."""
    connection = libvirt.open(f"qemu:///embed?root={embed_root}")
    yield connection
    connection.close()


@pytest.fixture
async def guests(embedded: LibvirtHypervisor) -> AsyncIterator[list[Instance]]:
    """Instances to be removed after the test."""
    made: list[Instance] = []
    yield made
    for instance in made:
        await embedded.destroy(instance.id)
        await embedded.undefine(instance.id)
        await embedded.delete_files(instance.id)


@pytest.fixture(params=["test", pytest.param("qemu", marks=pytest.mark.qemu)])
def real_or_none(request: pytest.FixtureRequest) -> LibvirtHypervisor | None:
    """The QEMU adapter, or None in the turn of the test driver."""
    return request.getfixturevalue("embedded") if request.param == "qemu" else None


@pytest.fixture
async def hypervisor(real_or_none: LibvirtHypervisor | None, tmp_path: Path) -> AsyncIterator[LibvirtHypervisor]:
    """An adapter on each driver."""
    if real_or_none is not None:
        yield real_or_none
        return
    async with opened(settings("test:///default", tmp_path)) as simulated:
        yield simulated


def disks(live: libvirt.virConnect, instance: Instance, flags: int = 0) -> dict[str, str]:
    """The disks that libvirt shows, and what serial numbers they have."""
    domain = etree.fromstring(live.lookupByUUIDString(instance.id).XMLDesc(flags))
    return {disk.find("target").get("dev"): disk.findtext("serial") or "" for disk in domain.findall("devices/disk")}


def everywhere(live: libvirt.virConnect, instance: Instance) -> list[dict[str, str]]:
    """The disks of the running guest, and those of its definition."""
    return [disks(live, instance), disks(live, instance, libvirt.VIR_DOMAIN_XML_INACTIVE)]


def a_file(folder: Path) -> Path:
    path = folder / "volume"
    path.write_bytes(bytes(8 * 1024**2))
    path.chmod(0o666)
    return path


async def test_every_kind_of_source_can_be_defined_and_what_was_done_is_done(hypervisor: LibvirtHypervisor) -> None:
    devices = [a_device(source, number) for number, source in enumerate(SOURCES, 1)]
    instance = an_instance(block_devices=devices)
    try:
        for _ in range(2):
            await hypervisor.define(instance)
            await hypervisor.plug_in(instance.id, devices[0])
        for _ in range(2):
            await hypervisor.unplug(instance.id, devices[0])
    finally:
        await hypervisor.undefine(instance.id)
        await hypervisor.delete_files(instance.id)


async def test_a_host_without_the_guest_has_nothing_to_do(hypervisor: LibvirtHypervisor) -> None:
    instance, device = an_instance(), a_device(SOURCES[0])
    await hypervisor.plug_in(instance.id, device)
    await hypervisor.unplug(instance.id, device)
    assert await hypervisor.observe(instance.id) is None


@pytest.mark.qemu
async def test_a_stopped_guest_gets_and_loses_a_volume(
    embedded: LibvirtHypervisor, live: libvirt.virConnect, guests: list[Instance], tmp_path: Path
) -> None:
    instance = an_instance()
    guests.append(instance)
    device = a_device({"type": "file", "path": str(a_file(tmp_path))})
    await embedded.create_disk(instance)
    await embedded.define(instance)
    for _ in range(2):
        await embedded.plug_in(instance.id, device)
        assert disks(live, instance) == {"vda": "", "vdb": "volume-1"}
    await embedded.start(instance.id)
    assert everywhere(live, instance) == [{"vda": "", "vdb": "volume-1"}] * 2
    await embedded.destroy(instance.id)
    for _ in range(2):
        await embedded.unplug(instance.id, device)
        assert disks(live, instance) == {"vda": ""}


async def booted(hypervisor: LibvirtHypervisor, instance: Instance) -> None:
    """Start a guest, and wait until its operating system says that it is ready."""
    await hypervisor.start(instance.id)
    async for _ in polling("the guest to be ready", every=0.2):
        if "virtfleet-guest: ready" in await hypervisor.console_output(instance.id, 20):
            return


def write_through(live: libvirt.virConnect, instance: Instance, disk: str, pattern: str) -> None:
    """Write to a disk as its guest does: through the device that it has."""
    command = f'qemu-io -d /machine/peripheral/{disk}/virtio-backend "write -P {pattern} 1M 64k"'
    domain = live.lookupByUUIDString(instance.id)
    libvirt_qemu.qemuMonitorCommand(domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP)


def holds(path: Path, pattern: str) -> bool:
    """Whether that is what the file holds, a guest's or nobody's."""
    options = f"driver=raw,file.driver=file,file.filename={path},file.locking=off"
    command = ["qemu-io", "-r", "--image-opts", options, "-c", f"read -P {pattern} 1M 64k"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return "read 65536/65536" in said and "failed" not in said


@pytest.mark.qemu
async def test_a_running_guest_gets_a_volume_keeps_it_across_a_hard_reboot_and_gives_it_back(
    embedded: LibvirtHypervisor, live: libvirt.virConnect, guests: list[Instance], tmp_path: Path
) -> None:
    image = next(one for one in catalogue() if one.name == "tiny")
    instance = an_instance(image=image, flavor=TINY)
    guests.append(instance)
    path = a_file(tmp_path)
    device = a_device({"type": "file", "path": str(path), "format": "raw"})
    await embedded.create_disk(instance)
    await embedded.define(instance)
    await booted(embedded, instance)
    for _ in range(2):
        await embedded.plug_in(instance.id, device)
        assert everywhere(live, instance) == [{"vda": "", "vdb": "volume-1"}] * 2
    write_through(live, instance, "virtio-disk1", "0xa5")

    with_volume = instance.model_copy(update={"block_devices": [device]})
    await embedded.destroy(instance.id)
    await embedded.undefine(instance.id)
    await embedded.define(with_volume)
    await booted(embedded, with_volume)
    assert everywhere(live, instance) == [{"vda": "", "vdb": "volume-1"}] * 2
    assert holds(path, "0xa5")
    write_through(live, instance, "virtio-disk1", "0x5a")

    for _ in range(2):
        await embedded.unplug(instance.id, device)
        assert everywhere(live, instance) == [{"vda": ""}] * 2
    guest = await embedded.observe(instance.id)
    assert guest is not None
    assert guest.power_state is PowerState.RUNNING
    assert holds(path, "0x5a")


@pytest.mark.qemu
async def test_a_guest_that_does_not_let_go_keeps_the_volume(
    embedded: LibvirtHypervisor, live: libvirt.virConnect, guests: list[Instance], tmp_path: Path
) -> None:
    instance = an_instance()  # with an empty disk it never gets as far as an operating system
    guests.append(instance)
    device = a_device({"type": "file", "path": str(a_file(tmp_path))})
    await embedded.create_disk(instance)
    await embedded.define(instance)
    await embedded.start(instance.id)
    await embedded.plug_in(instance.id, device)
    with pytest.raises(HypervisorFault) as kept:
        await embedded.unplug(instance.id, device)
    assert kept.value.facts["code"] == "not_released"
    assert everywhere(live, instance) == [{"vda": "", "vdb": "volume-1"}] * 2


@pytest.mark.qemu
async def test_a_file_that_is_not_there_is_refused(
    embedded: LibvirtHypervisor, guests: list[Instance], tmp_path: Path
) -> None:
    instance = an_instance()
    guests.append(instance)
    await embedded.create_disk(instance)
    await embedded.define(instance)
    await embedded.start(instance.id)
    with pytest.raises(HypervisorFault):
        await embedded.plug_in(instance.id, a_device({"type": "file", "path": str(tmp_path / "none")}))
