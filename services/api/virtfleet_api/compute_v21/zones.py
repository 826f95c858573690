"""os-availability-zone: the zones that hosts are in."""

from collections.abc import Mapping

from starlette.responses import Response
from virtfleet_common.records import Host

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.services import BINARY, shown_state, zone_of
from virtfleet_api.compute_v21.shapes import Shape, micros
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint


async def list_zones(call: Call) -> Response:
    """The availability zones; one is available while a host of it is up and enabled."""
    return await _listed(call, with_hosts=False)


async def list_zone_details(call: Call) -> Response:
    """The availability zones with their hosts."""
    return await _listed(call, with_hosts=True)


async def _listed(call: Call, *, with_hosts: bool) -> Response:
    aggregates = await call.store.aggregates.find()
    zones: dict[str, list[Host]] = {}
    for host in await call.store.hosts.find():
        zones.setdefault(zone_of(host, aggregates), []).append(host)
    return answer({"availabilityZoneInfo": _views(zones or {"nova": []}, with_hosts=with_hosts)})


def _views(zones: Mapping[str, list[Host]], *, with_hosts: bool) -> list[Shape]:
    return [
        {
            "zoneName": name,
            "zoneState": {"available": any(_is_available(host) for host in members)},
            "hosts": {host.id: {BINARY: _member(host)} for host in members} if with_hosts else None,
        }
        for name, members in sorted(zones.items())
    ]


def _is_available(host: Host) -> bool:
    return host.is_enabled and shown_state(host) == "up"


def _member(host: Host) -> Shape:
    return {"available": _is_available(host), "active": host.is_enabled, "updated_at": micros(host.last_seen)}


ENDPOINTS = (
    Endpoint("GET", "/os-availability-zone", list_zones, "read"),
    Endpoint("GET", "/os-availability-zone/detail", list_zone_details, "hosts:read"),
)
