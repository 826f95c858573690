"""Volumes into and out of a guest that is defined already: into the one that runs, and into its definition. Blocking.

A volume is known by the serial number that its record's id is, so that each half can be seen to be done or not.
"""

from collections.abc import Iterator

import libvirt
from lxml import etree
from virtfleet_common.volumes import Device

from virtfleet_compute_agent.hypervisor.disk_xml import disk_of

_LIVE, _CONFIG = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
_PARSER = etree.XMLParser(resolve_entities=False, no_network=True)


def plug_in(domain: libvirt.virDomain | None, device: Device) -> None:
    """Have the volume in the running guest, if it runs, and in the definition. No guest: its next start is from the
    record."""
    if domain is None:
        return
    xml = etree.tostring(disk_of(device, device["target"]), encoding="unicode")
    for flag in _halves(domain):
        if _find(domain, device, flag) is None:
            domain.attachDeviceFlags(xml, flag)


def ask_back(domain: libvirt.virDomain | None, device: Device) -> bool:
    """Ask the running guest for the volume; once it has let go, take it out of the definition. True: it is in neither.

    The guest lets go when it likes. libvirt waits a few seconds for it; until then it may refuse to be asked again.
    """
    if domain is None:
        return True
    for flag in _halves(domain):
        disk = _find(domain, device, flag)
        if disk is None:
            continue
        try:
            domain.detachDeviceFlags(etree.tostring(disk, encoding="unicode"), flag)
        except libvirt.libvirtError:
            if flag == _CONFIG:
                raise
        if _find(domain, device, flag) is not None:
            return False
    return True


def _halves(domain: libvirt.virDomain) -> Iterator[int]:
    """The running guest, if it runs, before the definition, if there is one."""
    if domain.isActive():
        yield _LIVE
    if domain.isPersistent():
        yield _CONFIG


def _find(domain: libvirt.virDomain, device: Device, flag: int) -> etree._Element | None:
    """The volume's disk; of a guest that was switched off meanwhile, the running half has none."""
    if flag == _LIVE and not domain.isActive():
        return None
    shown = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if flag == _CONFIG else 0)
    disks = etree.fromstring(shown, _PARSER).findall("devices/disk")
    return next((disk for disk in disks if disk.findtext("serial") == device["id"]), None)
