"""A server as a client sees it: pure functions from the record, the microversion and who asks."""

from collections.abc import Mapping
from dataclasses import dataclass

from virtfleet_common.records import Flavor, Host, Instance
from virtfleet_common.states import HostState, VmState, api_status
from virtfleet_common.volumes import Device, present

from virtfleet_api.compute_v21.shapes import Shape, bookmark, host_id, links, micros, zulu

_PROGRESSING = frozenset({"ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING"})
_FAULTY = frozenset({"ERROR", "DELETED"})
_FAULT_CODE = 500
_HOST_STATUS = {HostState.UP: "UP", HostState.UNKNOWN: "UNKNOWN"}


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks, in which microversion, and from where."""

    version: int
    is_admin: bool
    base_url: str


def brief(server: Instance, viewer: Viewer) -> Shape:
    """A server in a plain list."""
    return {"id": server.id, "name": server.name, "links": links(viewer.base_url, "servers", server.id)}


def detail(server: Instance, viewer: Viewer, hosts: Mapping[str, Host]) -> Shape:
    """A server in a detailed list; `hosts` holds at least its own host where the viewer is an admin."""
    shape = core(server, viewer) | _extended(server, viewer)
    if viewer.is_admin:
        host = hosts.get(server.host or "")
        shape |= _admin(server, viewer, host)
        if viewer.version >= 16:
            shape["host_status"] = host_status(server, host)
    if viewer.version >= 63:
        shape["trusted_image_certificates"] = None
    return shape


def shown(server: Instance, viewer: Viewer, hosts: Mapping[str, Host]) -> Shape:
    """A server shown alone."""
    shape = detail(server, viewer, hosts)
    if viewer.version >= 71:
        group = server.hints.get("group")
        shape["server_groups"] = [group] if group else []
    return shape


def core(server: Instance, viewer: Viewer) -> Shape:
    """The fields that every answer about one server has."""
    status = api_status(server.vm_state, server.task_state)
    shape: Shape = brief(server, viewer) | {
        "status": status,
        "tenant_id": server.project_id,
        "user_id": server.user_id,
        "metadata": dict(server.metadata),
        "hostId": host_id(server.project_id, server.host),
        "image": bookmark(viewer.base_url, "images", server.image.id) if server.image else "",
        "flavor": _flavor(server.flavor, viewer),
        "created": zulu(server.created_at),
        "updated": zulu(server.updated_at),
        "addresses": addresses(server),
        "accessIPv4": "",
        "accessIPv6": "",
        "OS-DCF:diskConfig": "MANUAL",
    }
    if status in _PROGRESSING:
        shape["progress"] = server.progress
    if status in _FAULTY and server.fault is not None:
        shape["fault"] = _fault(server, viewer)
    return shape | _core_since(server, viewer.version)


def _core_since(server: Instance, version: int) -> Shape:
    fields = {
        "locked": (9, server.locked_by is not None),
        "description": (19, server.description),
        "tags": (26, list(server.tags)),
        "locked_reason": (73, server.locked_reason),
    }
    return {name: value for name, (since, value) in fields.items() if version >= since}


def addresses(server: Instance) -> Shape:
    """The networks a server is on. Virtfleet knows no addresses: each guest gets its own from its network."""
    return {port.network or port.bridge or "": [] for port in server.networks}


def host_status(server: Instance, host: Host | None) -> str:
    """What admins see of the host at a server: UP, UNKNOWN, DOWN, MAINTENANCE (disabled, and not down); empty without a
    host."""
    if server.host is None:
        return ""
    if host is None:
        return "UNKNOWN"
    if host.is_forced_down or host.state is HostState.DOWN:
        return "DOWN"
    return _HOST_STATUS[host.state] if host.is_enabled else "MAINTENANCE"


def _flavor(flavor: Flavor, viewer: Viewer) -> Shape:
    if viewer.version < 47:
        return bookmark(viewer.base_url, "flavors", flavor.id)
    return {
        "original_name": flavor.name,
        "vcpus": flavor.vcpus,
        "ram": flavor.ram_mb,
        "disk": flavor.disk_gb,
        "ephemeral": 0,
        "swap": 0,
        "extra_specs": dict(flavor.extra_specs),
    }


def _fault(server: Instance, viewer: Viewer) -> Shape:
    assert server.fault is not None
    shape = {"code": _FAULT_CODE, "created": zulu(server.fault.created), "message": server.fault.message}
    return shape | ({"details": server.fault.details} if viewer.is_admin else {})


def _volume(device: Device, viewer: Viewer) -> Shape:
    shape = {"id": device.get("id")}
    return shape | ({"delete_on_termination": False} if viewer.version >= 3 else {})


def _extended(server: Instance, viewer: Viewer) -> Shape:
    terminated = server.deleted_at if server.vm_state is VmState.DELETED else None
    return {
        "OS-EXT-AZ:availability_zone": server.availability_zone or ("nova" if server.host else ""),
        "config_drive": "",
        "key_name": None,
        "OS-EXT-STS:task_state": server.task_state,
        "OS-EXT-STS:vm_state": server.vm_state,
        "OS-EXT-STS:power_state": int(server.power_state.shown),
        "os-extended-volumes:volumes_attached": [_volume(one, viewer) for one in present(server) if one.get("id")],
        "OS-SRV-USG:launched_at": micros(server.launched_at),
        "OS-SRV-USG:terminated_at": micros(terminated),
        "security_groups": [{"name": "default"}],
    }


def _admin(server: Instance, viewer: Viewer, host: Host | None) -> Shape:
    shape: Shape = {
        "OS-EXT-SRV-ATTR:host": server.host,
        "OS-EXT-SRV-ATTR:hypervisor_hostname": (host.hypervisor_hostname or host.id) if host else server.host,
        "OS-EXT-SRV-ATTR:instance_name": server.id,
    }
    if viewer.version >= 3:
        shape |= {
            "OS-EXT-SRV-ATTR:reservation_id": server.reservation_id,
            "OS-EXT-SRV-ATTR:launch_index": 0,
            "OS-EXT-SRV-ATTR:hostname": server.name,
            "OS-EXT-SRV-ATTR:kernel_id": "",
            "OS-EXT-SRV-ATTR:ramdisk_id": "",
            "OS-EXT-SRV-ATTR:root_device_name": "/dev/vda",
            "OS-EXT-SRV-ATTR:user_data": None,
        }
    return shape
