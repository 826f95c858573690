"""The domain XML of an instance, from its record alone, and the way back: what Virtfleet wrote into a domain. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lxml import etree
from virtfleet_common.errors import HypervisorFault
from virtfleet_common.records import Instance, NetworkPort

from virtfleet_compute_agent.hypervisor.layout import Layout, has_root_disk, initrd_of, kernel_of

NAMESPACE = "https://virtfleet.dev/xmlns/domain/1"
PREFIX = "vf"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DISK_NAMES = [f"vd{letter}" for letter in _LETTERS] + [f"vd{one}{two}" for one in _LETTERS for two in _LETTERS]
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


@dataclass(frozen=True, slots=True)
class Platform:
    """What the domain is for: libvirt's domain type (`kvm`, `qemu`, `test`) and the processor architecture."""

    domain_type: str
    arch: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What Virtfleet wrote into a domain: who owned the instance when it was defined, and in which action."""

    epoch: int
    action_id: str | None


def domain_name(instance_id: str) -> str:
    """The domain's name: the instance's own may change, and need not be unique on a host."""
    return f"vf-{instance_id}"


def build_domain(instance: Instance, layout: Layout, platform: Platform) -> str:
    """The XML to define `instance` with."""
    domain = _e(
        "domain",
        _e("name", domain_name(instance.id)),
        _e("uuid", instance.id),
        _e("metadata", _mark_element(instance)),
        _e("memory", str(instance.flavor.ram_mb), unit="MiB"),
        _e("vcpu", str(instance.flavor.vcpus)),
        _os(instance, layout, platform),
        _e("features", _e("acpi"), _e("apic")),
        *([_e("cpu", mode="host-model")] if platform.domain_type == "kvm" else []),
        _e("clock", offset="utc"),
        _e("on_poweroff", "destroy"),
        _e("on_reboot", "restart"),
        _e("on_crash", "destroy"),
        _devices(instance, layout),
        type=platform.domain_type,
    )
    return etree.tostring(domain, encoding="unicode")


def parse_mark(metadata: str) -> Mark | None:
    """The mark in a domain's metadata element, as libvirt returns it (libvirt drops the prefix).

    None when it is not ours to understand: a guest of unknown epoch must not be taken for an outdated one.
    """
    try:
        element = etree.fromstring(metadata, _PARSER)
        return Mark(int(element.get("epoch", "")), element.get("action"))
    except (etree.XMLSyntaxError, ValueError):
        return None


def mark_of(instance: Instance) -> Mark:
    """The mark that a domain defined from this record bears."""
    return Mark(instance.epoch, instance.action.id if instance.action else None)


def _mark_element(instance: Instance) -> etree._Element:
    mark = mark_of(instance)
    attributes = {"epoch": str(mark.epoch)} | ({"action": mark.action_id} if mark.action_id else {})
    element = etree.Element(f"{{{NAMESPACE}}}instance", attributes, nsmap={PREFIX: NAMESPACE})
    texts = {"name": instance.name, "project": instance.project_id, "flavor": instance.flavor.name}
    for name, text in texts.items():
        etree.SubElement(element, f"{{{NAMESPACE}}}{name}").text = _printable(text)
    return element


def _os(instance: Instance, layout: Layout, platform: Platform) -> etree._Element:
    """i440fx (`pc`) on x86: it boots faster than q35 under software emulation and answers the ACPI power button."""
    machine = {"machine": "pc"} if platform.arch in {"x86_64", "i686"} else {}
    os = _e("os", _e("type", "hvm", arch=platform.arch, **machine))
    kernel, initrd = kernel_of(instance.image), initrd_of(instance.image)
    if kernel is None or instance.image is None:
        os.append(_e("boot", dev="hd"))
        return os
    os.append(_e("kernel", str(layout.cached(kernel))))
    if initrd is not None:
        os.append(_e("initrd", str(layout.cached(initrd))))
    os.append(_e("cmdline", _printable(instance.image.properties.get("cmdline", "console=ttyS0"))))
    return os


def _devices(instance: Instance, layout: Layout) -> etree._Element:
    log = str(layout.console(instance.id))
    return _e(
        "devices",
        *_disks(instance, layout),
        *(_network_card(port) for port in instance.networks),
        _e("serial", _e("source", path=log, append="on"), _e("target", port="0"), type="file"),
        _e("console", _e("source", path=log, append="on"), _e("target", type="serial", port="0"), type="file"),
        _e("controller", type="usb", model="none"),
        _e("rng", _e("backend", "/dev/urandom", model="random"), model="virtio"),
        _e("memballoon", model="none"),
    )


def _disks(instance: Instance, layout: Layout) -> Iterator[etree._Element]:
    taken = {str(device["target"]) for device in instance.block_devices if device.get("target")}
    if has_root_disk(instance):
        taken.add("vda")
        yield _disk("file", str(layout.disk(instance.id)), "qcow2", "vda")
    free = (name for name in _DISK_NAMES if name not in taken)
    for device in instance.block_devices:
        yield _block_device(device, str(device.get("target") or next(free)))


def _block_device(device: Mapping[str, Any], target: str) -> etree._Element:
    """A volume: `path`; `type` is file (default) or block, `format` raw by default; `id` shows inside the guest."""
    path = device.get("path")
    if not path:
        raise HypervisorFault("a block device has no path", operation="define", code="bad_block_device")
    disk = _disk(str(device.get("type", "file")), str(path), str(device.get("format", "raw")), target)
    if device.get("is_readonly"):
        disk.append(_e("readonly"))
    if device.get("id"):
        disk.append(_e("serial", str(device["id"])))
    return disk


def _disk(kind: str, path: str, disk_format: str, target: str) -> etree._Element:
    source = _e("source", dev=path) if kind == "block" else _e("source", file=path)
    driver = _e("driver", name="qemu", type=disk_format)
    return _e("disk", driver, source, _e("target", dev=target, bus="virtio"), type=kind, device="disk")


def _network_card(port: NetworkPort) -> etree._Element:
    """A card on a libvirt network or a bridge; with neither, behind QEMU's own address translation (no privileges)."""
    mac, model = _e("mac", address=port.mac), _e("model", type="virtio")
    if port.network:
        return _e("interface", mac, _e("source", network=port.network), model, type="network")
    if port.bridge:
        return _e("interface", mac, _e("source", bridge=port.bridge), model, type="bridge")
    return _e("interface", mac, model, type="user")


def _e(tag: str, *content: etree._Element | str, **attributes: str) -> etree._Element:
    """An element with attributes, and elements or a text inside."""
    element = etree.Element(tag, attributes)
    for part in content:
        if isinstance(part, str):
            element.text = part
        else:
            element.append(part)
    return element


def _printable(text: str) -> str:
    """`text` without what XML 1.0 cannot hold: a name with a stray control character must not break a reboot."""
    return "".join(character for character in text if character.isprintable())
