"""os-hypervisors: the hosts, what they have and what is used of it."""

import re
from uuid import UUID

from starlette.responses import Response
from virtfleet_common.errors import BadRequest, NotFound
from virtfleet_common.records import Host
from virtfleet_common.store import InstanceQuery

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.services import shown_id, shown_state, shown_status
from virtfleet_api.compute_v21.shapes import Shape, cut, micros, next_links
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import flag_argument

_SUMMED = (
    "vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "local_gb", "local_gb_used", "free_disk_gb",
    "running_vms", "current_workload",
)  # fmt: skip


def hostname(host: Host) -> str:
    """What the hypervisor calls itself."""
    return host.hypervisor_hostname or host.id


def brief(host: Host, version: int) -> Shape:
    """A hypervisor in a plain list: pure, from its record."""
    return {
        "id": shown_id(host, version),
        "hypervisor_hostname": hostname(host),
        "state": shown_state(host),
        "status": shown_status(host),
    }


def detail(host: Host, version: int) -> Shape:
    """A hypervisor in full: pure, from its record. `*_used` is what is allocated, not what guests consume."""
    ram_used = int(host.limits.ram_mb - host.free.ram_mb)
    disk_used = int(host.limits.disk_gb - host.free.disk_gb)
    return brief(host, version) | {
        "host_ip": host.host_ip,
        "hypervisor_type": host.hypervisor_type,
        "hypervisor_version": host.hypervisor_version,
        "service": {"id": shown_id(host, version), "host": host.id, "disabled_reason": host.disabled_reason},
        "vcpus": int(host.total.vcpus),
        "vcpus_used": int(host.limits.vcpus - host.free.vcpus),
        "memory_mb": int(host.total.ram_mb),
        "memory_mb_used": ram_used,
        "free_ram_mb": int(host.total.ram_mb) - ram_used,
        "local_gb": int(host.total.disk_gb),
        "local_gb_used": disk_used,
        "free_disk_gb": int(host.total.disk_gb) - disk_used,
        "disk_available_least": None,
        "running_vms": host.guests,
        "current_workload": 0,
        "cpu_info": {} if version >= 28 else "{}",
    }


async def list_hypervisors(call: Call) -> Response:
    """The hypervisors, by id and name."""
    hosts, more = await _page(call, "os-hypervisors")
    shapes = [brief(host, call.version) | await _servers(call, host) for host in hosts]
    return answer({"hypervisors": shapes} | more)


async def list_details(call: Call) -> Response:
    """The hypervisors, in full."""
    hosts, more = await _page(call, "os-hypervisors/detail")
    shapes = [detail(host, call.version) | await _servers(call, host) for host in hosts]
    return answer({"hypervisors": shapes} | more)


async def _page(call: Call, path: str) -> tuple[list[Host], Shape]:
    hosts = _matching(call, await call.store.hosts.find())
    if call.version < 33:
        return hosts, {}
    window = cut([str(shown_id(host, call.version)) for host in hosts], call)
    page = hosts[window]
    if not page or window.stop >= len(hosts):
        return page, {}
    return page, {"hypervisors_links": next_links(call, path, str(shown_id(page[-1], call.version)))}


def _matching(call: Call, hosts: list[Host]) -> list[Host]:
    pattern = call.query.get("hypervisor_hostname_pattern") if call.version >= 53 else None
    if pattern is None:
        return hosts
    found = [host for host in hosts if pattern in hostname(host)]
    if not found:
        raise NotFound(f"No hypervisor matching '{pattern}' could be found.", rule="hypervisor_exists")
    return found


async def _servers(call: Call, host: Host) -> Shape:
    if call.version < 53 or not flag_argument("with_servers", call.query.get("with_servers")):
        return {}
    guests = await call.store.instances.find(InstanceQuery(host=host.id))
    return {"servers": [{"uuid": guest.id, "name": guest.name} for guest in guests]} if guests else {}


async def _found(call: Call) -> Host:
    """The hypervisor that the path names; a name in place of an id is a 400, after which clients look it up."""
    id_ = call.param("id")
    if call.version >= 53:
        _require_uuid(id_)
    for host in await call.store.hosts.find():
        if str(shown_id(host, call.version)) == id_:
            return host
    raise NotFound(f"Hypervisor with ID '{id_}' could not be found.", rule="hypervisor_exists")


def _require_uuid(id_: str) -> None:
    try:
        UUID(id_)
    except ValueError:
        raise BadRequest(f"Invalid uuid {id_}", rule="hypervisor.uuid") from None


async def show_hypervisor(call: Call) -> Response:
    """One hypervisor."""
    host = await _found(call)
    return answer({"hypervisor": detail(host, call.version) | await _servers(call, host)})


async def show_uptime(call: Call) -> Response:
    """One hypervisor's uptime. Virtfleet does not ask the machine: it says when it last heard of it."""
    host = await _found(call)
    seen = f"unknown; last heartbeat {micros(host.last_seen)}"
    return answer({"hypervisor": brief(host, call.version) | {"uptime": seen}})


async def show_statistics(call: Call) -> Response:
    """The sums over all hypervisors that are enabled."""
    shapes = [detail(host, call.version) for host in await call.store.hosts.find() if host.is_enabled]
    sums: Shape = {name: sum(shape[name] for shape in shapes) for name in _SUMMED}
    return answer({"hypervisor_statistics": sums | {"count": len(shapes), "disk_available_least": 0}})


async def search(call: Call) -> Response:
    """The hypervisors whose name has a part (the form of this question before 2.53)."""
    part = re.escape(call.param("id"))
    found = [host for host in await call.store.hosts.find() if re.search(part, hostname(host))]
    if not found:
        raise NotFound(f"No hypervisor matching '{call.param('id')}' could be found.", rule="hypervisor_exists")
    return answer({"hypervisors": [brief(host, call.version) for host in found]})


_BASE = "/os-hypervisors"
ENDPOINTS = (
    Endpoint("GET", _BASE, list_hypervisors, "hosts:read"),
    Endpoint("GET", _BASE + "/detail", list_details, "hosts:read"),
    Endpoint("GET", _BASE + "/statistics", show_statistics, "hosts:read"),
    Endpoint("GET", _BASE + "/{id}", show_hypervisor, "hosts:read"),
    Endpoint("GET", _BASE + "/{id}/uptime", show_uptime, "hosts:read"),
    Endpoint("GET", _BASE + "/{id}/search", search, "hosts:read", until=52),
)
