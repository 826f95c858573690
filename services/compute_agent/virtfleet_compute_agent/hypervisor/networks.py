"""Whether a host has the networks that an instance is to be on. Blocking."""

from pathlib import Path

import libvirt
from virtfleet_common.records import Instance

_ABSENT = frozenset({libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_SUPPORT})
_INTERFACES = Path("/sys/class/net")


def missing(live: libvirt.virConnect, instance: Instance) -> list[str]:
    """The libvirt networks and bridges of the instance that are surely not here. Raises libvirtError when unsure."""
    bridges = [port.bridge for port in instance.networks if port.bridge]
    names = [port.network for port in instance.networks if port.network]
    lacking = [bridge for bridge in bridges if not (_INTERFACES / bridge).exists()]
    return lacking + [name for name in names if not _is_known(live, name)]


def _is_known(live: libvirt.virConnect, name: str) -> bool:
    try:
        live.networkLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _ABSENT:
            return False
        raise
    return True
