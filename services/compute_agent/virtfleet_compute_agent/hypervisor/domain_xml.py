"""The domain XML of an instance, from its record alone, and the way back: what Virtfleet wrote into a domain. Pure."""

from dataclasses import dataclass

from lxml import etree
from virtfleet_common.records import Instance, NetworkPort

from virtfleet_compute_agent.hypervisor.disk_xml import disks_of
from virtfleet_compute_agent.hypervisor.elements import element as _e
from virtfleet_compute_agent.hypervisor.layout import Layout, initrd_of, kernel_of

NAMESPACE = "https://virtfleet.dev/xmlns/domain/1"
PREFIX = "vf"
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
        *disks_of(instance, layout),
        *(_network_card(port) for port in instance.networks),
        _e("serial", _e("source", path=log, append="on"), _e("target", port="0"), type="file"),
        _e("console", _e("source", path=log, append="on"), _e("target", type="serial", port="0"), type="file"),
        _e("controller", type="usb", model="none"),
        _e("rng", _e("backend", "/dev/urandom", model="random"), model="virtio"),
        _e("memballoon", model="none"),
    )


def _network_card(port: NetworkPort) -> etree._Element:
    """A card on a libvirt network or a bridge; with neither, behind QEMU's own address translation (no privileges)."""
    mac, model = _e("mac", address=port.mac), _e("model", type="virtio")
    if port.network:
        return _e("interface", mac, _e("source", network=port.network), model, type="network")
    if port.bridge:
        return _e("interface", mac, _e("source", bridge=port.bridge), model, type="bridge")
    return _e("interface", mac, model, type="user")


def _printable(text: str) -> str:
    """`text` without what XML 1.0 cannot hold: a name with a stray control character must not break a reboot."""
    return "".join(character for character in text if character.isprintable())
