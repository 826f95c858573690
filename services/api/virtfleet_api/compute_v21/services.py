"""os-services: the compute services, one per host, as operators see and switch them."""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import Field
from starlette.responses import Response
from virtfleet_common.errors import BadRequest, NotFound
from virtfleet_common.records import Aggregate, Host
from virtfleet_common.states import HostState

from virtfleet_api import host_changes
from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.shapes import Shape, micros
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body, Flag

BINARY = "nova-compute"
ZONE = "availability_zone"
"""The key of an aggregate's metadata that makes it an availability zone."""
_UUIDS_SINCE = 53
Reason = Annotated[str, Field(min_length=1, max_length=255)]


class ServiceChange(Body):
    """`PUT /os-services/{uuid}`, from 2.53 on."""

    status: Literal["enabled", "disabled"] | None = None
    disabled_reason: Reason | None = None
    forced_down: Flag | None = None


class ServiceSwitch(Body):
    """`PUT /os-services/enable`, `disable`, `disable-log-reason`, `force-down`, until 2.52."""

    SINCE: ClassVar[Mapping[str, int]] = {"forced_down": 11}

    host: Annotated[str, Field(min_length=1, max_length=255)]
    binary: str = BINARY
    disabled_reason: Reason | None = None
    forced_down: Flag | None = None


def shown_id(host: Host, version: int) -> str | int:
    """A service's or hypervisor's id: the uuid from 2.53 on, a number made from it before."""
    return host.uuid if version >= _UUIDS_SINCE else int(host.uuid.replace("-", "")[:7] or "0", 16)


def shown_state(host: Host) -> str:
    """`down` only where evacuation is let: a host that merely misses heartbeats is not yet known to be down."""
    return "down" if host.is_forced_down or host.state is HostState.DOWN else "up"


def shown_status(host: Host) -> str:
    """Whether new guests are let onto the host."""
    return "enabled" if host.is_enabled else "disabled"


def zone_of(host: Host, aggregates: Iterable[Aggregate]) -> str:
    """The availability zone of a host: that of the first aggregate with one, or else the one that its agent names."""
    zones = (one.metadata[ZONE] for one in aggregates if host.id in one.hosts and ZONE in one.metadata)
    return next(zones, host.availability_zone)


def service_view(host: Host, zone: str, version: int) -> Shape:
    """A compute service: pure, from its host's record and the availability zone it is in."""
    shape: Shape = {
        "id": shown_id(host, version),
        "binary": BINARY,
        "host": host.id,
        "zone": zone,
        "state": shown_state(host),
        "status": shown_status(host),
        "updated_at": micros(host.last_seen),
        "disabled_reason": host.disabled_reason,
    }
    return shape | ({"forced_down": host.is_forced_down} if version >= 11 else {})


async def list_services(call: Call) -> Response:
    """The compute services."""
    host, binary = call.query.get("host"), call.query.get("binary")
    hosts = [one for one in await call.store.hosts.find() if host in (None, one.id) and binary in (None, BINARY)]
    aggregates = await call.store.aggregates.find()
    views = [service_view(one, zone_of(one, aggregates), call.version) for one in hosts]
    return answer({"services": views})


async def update_service(call: Call) -> Response:
    """Enable, disable, or force down a compute service."""
    if call.version < _UUIDS_SINCE:
        return await _switch(call, call.param("id"))
    change = await call.read(ServiceChange)
    _check(change)
    host = await _found(call)
    if change.forced_down is not None:
        await _force(call, host, change.forced_down)
    if change.status is not None:
        await _enable(call, host, change.status == "enabled", change.disabled_reason)
    zone = zone_of(host, await call.store.aggregates.find())
    changed = await call.store.hosts.get_brief(host.id) or host
    return answer({"service": service_view(changed, zone, call.version)})


def _check(change: ServiceChange) -> None:
    if change.disabled_reason is not None and change.status != "disabled":
        message = "Specifying disabled_reason is only allowed when status is being set to disabled."
        raise BadRequest(message, rule="service.reason")
    if change.status is None and change.forced_down is None:
        message = "No updates were requested. Fields status or forced_down should be given."
        raise BadRequest(message, rule="service.empty")


async def _found(call: Call) -> Host:
    """The host of the service that the path names. Raises BadRequest for what is no id, NotFound."""
    id_ = call.param("id")
    if call.version >= _UUIDS_SINCE:
        _require_uuid(id_)
    for host in await call.store.hosts.find():
        if str(shown_id(host, call.version)) == id_:
            return host
    raise NotFound(f"Service {id_} could not be found.", rule="service_exists")


def _require_uuid(id_: str) -> None:
    try:
        UUID(id_)
    except ValueError:
        raise BadRequest(f"Invalid uuid {id_}", rule="service.uuid") from None


async def _force(call: Call, host: Host, is_forced: bool) -> None:
    if is_forced:
        await host_changes.force_down(call.store, host, call.services.clock.now())
    else:
        await host_changes.let_return(call.store, host)


async def _enable(call: Call, host: Host, is_enabled: bool, reason: str | None) -> None:
    await call.store.hosts.set_fields(host.id, {"is_enabled": is_enabled, "disabled_reason": reason})


async def delete_service(call: Call) -> Response:
    """Remove a compute service that is not needed any more. An agent that still runs makes it anew: stop it first."""
    await host_changes.remove(call.store, await _found(call))
    return empty(204)


async def _switch(call: Call, name: str) -> Response:
    if name not in ("enable", "disable", "disable-log-reason") and (name != "force-down" or call.version < 11):
        raise NotFound("Unknown action", rule="service.switch")
    body = await call.read(ServiceSwitch)
    _check_switch(name, body)
    host = await call.store.hosts.get_brief(body.host)
    if host is None or body.binary != BINARY:
        raise NotFound(f"Could not find binary {body.binary} on host {body.host}.", rule="service_exists")
    if name == "force-down":
        await _force(call, host, bool(body.forced_down))
    else:
        await _enable(call, host, name == "enable", body.disabled_reason)
    return answer({"service": _switch_view(name, body)})


def _check_switch(name: str, body: ServiceSwitch) -> None:
    needed = {"force-down": "forced_down", "disable-log-reason": "disabled_reason"}.get(name)
    if needed is not None and getattr(body, needed) is None:
        raise BadRequest(f"'{needed}' is a required property.", rule="body.schema")


def _switch_view(name: str, body: ServiceSwitch) -> Shape:
    shape: Shape = {"host": body.host, "binary": body.binary}
    if name == "force-down":
        return shape | {"forced_down": body.forced_down}
    shape["status"] = "enabled" if name == "enable" else "disabled"
    return shape | ({"disabled_reason": body.disabled_reason} if name == "disable-log-reason" else {})


_QUERY = frozenset({"host", "binary"})
ENDPOINTS = (
    Endpoint("GET", "/os-services", list_services, "hosts:read", query=_QUERY),
    Endpoint("PUT", "/os-services/{id}", update_service, "hosts:manage", body=ServiceChange),
    Endpoint("DELETE", "/os-services/{id}", delete_service, "hosts:manage"),
)
