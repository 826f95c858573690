"""The disks of a domain: the instance's own, and its volumes from wherever their data lies. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from lxml import etree
from virtfleet_common import volumes
from virtfleet_common.errors import HypervisorFault
from virtfleet_common.records import Instance
from virtfleet_common.volumes import DEVICE_NAMES, Device

from virtfleet_compute_agent.hypervisor.elements import element as _e
from virtfleet_compute_agent.hypervisor.layout import Layout, has_root_disk

_NEEDED = {"file": ("path",), "block": ("path",), "rbd": ("pool", "image", "hosts"), "iscsi": ("iqn", "host")}


def disks_of(instance: Instance, layout: Layout) -> Iterator[etree._Element]:
    """Every disk, the one to boot from first. A volume without a device name gets the first that is free."""
    devices = volumes.present(instance)
    taken = {str(device["target"]) for device in devices if device.get("target")}
    if has_root_disk(instance):
        taken.add(DEVICE_NAMES[0])
        yield _disk("file", _e("source", file=str(layout.disk(instance.id))), "qcow2", DEVICE_NAMES[0])
    free = (name for name in DEVICE_NAMES if name not in taken)
    for device in devices:
        yield disk_of(device, str(device.get("target") or next(free)))


def disk_of(device: Device, target: str) -> etree._Element:
    """One volume; the `id` of its record shows inside the guest, as the disk's serial number.

    Raises HypervisorFault where the record does not say enough of the source.
    """
    kind, source = _source(device)
    disk = _disk(kind, source, str(device.get("format", "raw")), target)
    if device.get("is_readonly"):
        disk.append(_e("readonly"))
    if device.get("id"):
        disk.append(_e("serial", str(device["id"])))
    return disk


def _source(device: Device) -> tuple[str, etree._Element]:
    """libvirt's disk type and source element."""
    kind = str(device.get("type", "file"))
    missing = [name for name in _NEEDED.get(kind, ("known type",)) if not device.get(name)]
    if missing:
        message = f"a block device of type {kind} has no {missing[0]}"
        raise HypervisorFault(message, operation="define", code="bad_block_device")
    match kind:
        case "rbd":
            hosts = [_host(one["name"], one.get("port")) for one in device["hosts"]]
            name = f"{device['pool']}/{device['image']}"
            return "network", _e("source", *hosts, *_auth(device, "ceph"), protocol="rbd", name=name)
        case "iscsi":
            host = _host(device["host"], device.get("port"))
            name = f"{device['iqn']}/{device.get('lun', 0)}"
            return "network", _e("source", host, *_auth(device, "iscsi"), protocol="iscsi", name=name)
        case "block":
            return "block", _e("source", dev=str(device["path"]))
        case _:
            return "file", _e("source", file=str(device["path"]))


def _host(name: str, port: int | None) -> etree._Element:
    return _e("host", name=name, **({"port": str(port)} if port else {}))


def _auth(device: Mapping[str, Any], usage: str) -> list[etree._Element]:
    """Who asks, and the libvirt secret of this host that holds the key: no key is in any record."""
    if not device.get("user") or not device.get("secret_uuid"):
        return []
    return [_e("auth", _e("secret", type=usage, uuid=device["secret_uuid"]), username=device["user"])]


def _disk(kind: str, source: etree._Element, disk_format: str, target: str) -> etree._Element:
    driver = _e("driver", name="qemu", type=disk_format)
    return _e("disk", driver, source, _e("target", dev=target, bus="virtio"), type=kind, device="disk")
