"""The domain XML says what the record says, and reads back as what was written."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from lxml import etree
from virtfleet_common.errors import HypervisorFault, ImageFault
from virtfleet_common.records import ActionState, Flavor, Image, Instance, NetworkPort
from virtfleet_common.states import VmState
from virtfleet_compute_agent.hypervisor.disk_xml import disk_of
from virtfleet_compute_agent.hypervisor.domain_xml import NAMESPACE, Mark, Platform, build_domain, parse_mark
from virtfleet_compute_agent.hypervisor.layout import Layout

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LAYOUT = Layout(Path("/srv/vf"))
QEMU = Platform("qemu", "x86_64")
FLAVOR = Flavor(_id="f1", name="m1.tiny", vcpus=2, ram_mb=512, disk_gb=4)


def an_instance(**fields: Any) -> Instance:
    plain = {"_id": str(uuid4()), "name": "web", "project_id": "p1", "user_id": "u1", "vm_state": VmState.ACTIVE}
    return Instance(**plain | {"flavor": FLAVOR, "epoch": 7, "created_at": NOW, "updated_at": NOW} | fields)


def an_image(**properties: str) -> Image:
    return Image(
        _id="i1", name="linux", location="/images/linux.qcow2", checksum="sha256:" + "a" * 64,
        properties=properties, created_at=NOW, updated_at=NOW,
    )  # fmt: skip


def built(instance: Instance, platform: Platform = QEMU) -> etree._Element:
    return etree.fromstring(build_domain(instance, LAYOUT, platform))


def mark_in(domain: etree._Element) -> Mark | None:
    element = domain.find(f"metadata/{{{NAMESPACE}}}instance")
    assert element is not None
    return parse_mark(etree.tostring(element, encoding="unicode"))


def test_size_and_identity_come_from_the_record() -> None:
    instance = an_instance()
    domain = built(instance)
    assert domain.get("type") == "qemu"
    assert domain.findtext("name") == f"vf-{instance.id}"
    assert domain.findtext("uuid") == instance.id
    assert (domain.findtext("memory"), domain.find("memory").get("unit")) == ("512", "MiB")
    assert domain.findtext("vcpu") == "2"
    assert [domain.findtext(f"on_{what}") for what in ("poweroff", "reboot", "crash")] == [
        "destroy", "restart", "destroy",
    ]  # fmt: skip


def test_the_power_button_is_wired() -> None:
    assert built(an_instance()).find("features/acpi") is not None


def test_epoch_and_action_read_back() -> None:
    assert mark_in(built(an_instance(action=ActionState.model_construct(id="req-1")))) == Mark(7, "req-1")
    assert mark_in(built(an_instance())) == Mark(7, None)


@pytest.mark.parametrize("text", ["not xml", "<instance/>", "<instance epoch='new'/>"])
def test_a_mark_nobody_understands_is_no_mark(text: str) -> None:
    assert parse_mark(text) is None


def test_names_with_markup_and_control_characters_do_no_harm() -> None:
    domain = built(an_instance(name="<evil>\x00&\x1b'"))
    assert domain.findtext(f"metadata/{{{NAMESPACE}}}instance/{{{NAMESPACE}}}name") == "<evil>&'"


def test_console_is_appended_to_the_log() -> None:
    instance = an_instance()
    source = built(instance).find("devices/serial/source")
    assert dict(source.attrib) == {"path": f"/srv/vf/instances/{instance.id}/console.log", "append": "on"}


def test_volumes_follow_the_root_disk_and_keep_the_names_they_ask_for() -> None:
    volumes = [
        {"path": "/dev/vg/a", "type": "block"},
        {"path": "/vol/b", "format": "qcow2", "target": "vdb"},
        {"path": "/vol/c", "id": "vol-c"},
    ]
    disks = built(an_instance(image=an_image(), block_devices=volumes)).findall("devices/disk")
    assert [disk.find("target").get("dev") for disk in disks] == ["vda", "vdc", "vdb", "vdd"]
    assert disks[1].find("source").get("dev") == "/dev/vg/a"
    assert [disk.find("driver").get("type") for disk in disks] == ["qcow2", "raw", "qcow2", "raw"]
    assert disks[3].findtext("serial") == "vol-c"


def test_an_instance_of_volumes_alone_has_no_root_disk() -> None:
    disks = built(an_instance(block_devices=[{"path": "/vol/a", "boot_index": 0}])).findall("devices/disk")
    assert [disk.find("source").get("file") for disk in disks] == ["/vol/a"]
    assert disks[0].find("target").get("dev") == "vda"


def test_a_volume_that_is_lost_is_left_out() -> None:
    lost = {"path": "/vol/a", "target": "vdb", "detached": "lost"}
    disks = built(an_instance(block_devices=[lost, {"path": "/vol/b", "target": "vdc"}])).findall("devices/disk")
    assert [disk.find("target").get("dev") for disk in disks] == ["vda", "vdc"]


@pytest.mark.parametrize(
    ("source", "xml"),
    [
        (
            {"type": "file", "path": "/vol/a", "format": "qcow2"},
            '<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/vol/a"/>',
        ),
        (
            {"type": "block", "path": "/dev/mapper/a"},
            '<disk type="block" device="disk"><driver name="qemu" type="raw"/><source dev="/dev/mapper/a"/>',
        ),
        (
            {
                "type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "mon1", "port": 6789}, {"name": "::1"}],
                "user": "vf", "secret_uuid": "s",
            },
            '<disk type="network" device="disk"><driver name="qemu" type="raw"/>'
            '<source protocol="rbd" name="vms/a"><host name="mon1" port="6789"/><host name="::1"/>'
            '<auth username="vf"><secret type="ceph" uuid="s"/></auth></source>',
        ),
        (
            {
                "type": "iscsi", "iqn": "iqn.2026-01.org.example:a", "lun": 2, "host": "san", "port": 3260,
                "user": "vf", "secret_uuid": "s",
            },
            '<disk type="network" device="disk"><driver name="qemu" type="raw"/>'
            '<source protocol="iscsi" name="iqn.2026-01.org.example:a/2"><host name="san" port="3260"/>'
            '<auth username="vf"><secret type="iscsi" uuid="s"/></auth></source>',
        ),
        (
            {"type": "iscsi", "iqn": "iqn.2026-01.org.example:a", "host": "san"},
            '<disk type="network" device="disk"><driver name="qemu" type="raw"/>'
            '<source protocol="iscsi" name="iqn.2026-01.org.example:a/0"><host name="san"/></source>',
        ),
    ],
)  # fmt: skip
def test_each_kind_of_source_is_a_disk_of_libvirts(source: dict[str, Any], xml: str) -> None:
    disk = disk_of({**source, "id": "v1", "is_readonly": True}, "vdb")
    expected = xml + '<target dev="vdb" bus="virtio"/><readonly/><serial>v1</serial></disk>'
    assert etree.tostring(disk, encoding="unicode") == expected


@pytest.mark.parametrize("device", [{"id": "v"}, {"type": "rbd", "pool": "vms"}, {"type": "iscsi"}, {"type": "nfs"}])
def test_a_volume_of_which_too_little_is_known_is_refused(device: dict[str, Any]) -> None:
    with pytest.raises(HypervisorFault):
        built(an_instance(block_devices=[device]))


def test_network_cards() -> None:
    macs = [f"52:54:00:00:00:0{number}" for number in range(3)]
    ports = [
        NetworkPort(mac=macs[0], network="default"), NetworkPort(mac=macs[1], bridge="br0"), NetworkPort(mac=macs[2]),
    ]  # fmt: skip
    cards = built(an_instance(networks=ports)).findall("devices/interface")
    assert [card.get("type") for card in cards] == ["network", "bridge", "user"]
    assert [card.find("mac").get("address") for card in cards] == macs
    assert cards[0].find("source").get("network") == "default"
    assert cards[1].find("source").get("bridge") == "br0"
    assert built(an_instance()).find("devices/interface") is None


def test_an_image_with_a_kernel_is_booted_directly() -> None:
    digest = "b" * 64
    image = an_image(kernel="/boot/vmlinuz", kernel_checksum=f"sha256:{digest}", initrd="/boot/rd", cmdline="quiet")
    os = built(an_instance(image=image)).find("os")
    assert os.findtext("kernel") == f"/srv/vf/images/{digest}"
    assert os.findtext("initrd").startswith("/srv/vf/images/unverified-")
    assert os.findtext("cmdline") == "quiet"
    assert os.find("boot") is None


def test_without_a_kernel_the_guest_boots_from_its_disk() -> None:
    assert built(an_instance(image=an_image())).find("os/boot").get("dev") == "hd"


def test_a_checksum_that_is_none_is_refused() -> None:
    with pytest.raises(ImageFault):
        built(an_instance(image=an_image(kernel="/k", kernel_checksum="sha256:../../etc/passwd")))


_ID = "463c5c35-4f3e-4dc8-b5c4-c74e93201d8f"


@pytest.mark.parametrize("bad", ["../../etc", "", "x", _ID.upper(), f"{{{_ID}}}"])
def test_only_a_uuid_names_a_folder(bad: str) -> None:
    with pytest.raises(HypervisorFault):
        LAYOUT.instance(bad)
