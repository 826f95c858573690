"""os-services: the compute services, one per host, as operators see and switch them."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.responses import Response
from virtfleet_common.errors import BadRequest, NotFound
from virtfleet_common.records import Aggregate, Host
from virtfleet_common.states import HostState
from virtfleet_common.store.hosts import as_lost

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.shapes import Shape, micros
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body, Flag

BINARY = "nova-compute"
ZONE = "availability_zone"
"""The key of an aggregate's metadata that makes it an availability zone."""
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
    return host.uuid if version >= 53 else int(host.uuid.replace("-", "")[:7] or "0", 16)


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
    name = call.param("id")
    if call.version < 53:
        return await _switch(call, name)
    change = await call.read(ServiceChange)
    host = next((one for one in await call.store.hosts.find() if one.uuid == name), None)
    if host is None:
        raise NotFound(f"Service {name} could not be found.", rule="service_exists")
    changed = await _write(call, host, _checked(change, call))
    zone = zone_of(changed, await call.store.aggregates.find())
    return answer({"service": service_view(changed, zone, call.version)})


def _checked(change: ServiceChange, call: Call) -> dict[str, Any]:
    if change.disabled_reason is not None and change.status != "disabled":
        message = "Specifying disabled_reason is only allowed when status is being set to disabled."
        raise BadRequest(message, rule="service.reason")
    fields: dict[str, Any] = {}
    if change.status is not None:
        fields |= {"is_enabled": change.status == "enabled", "disabled_reason": change.disabled_reason}
    if change.forced_down is not None:
        fields |= _forced(change.forced_down, call)
    if not fields:
        raise BadRequest(
            "No updates were requested. Fields status or forced_down should be given.", rule="service.empty"
        )
    return fields


def _forced(is_forced: bool, call: Call) -> dict[str, Any]:
    """A host that is forced down is lost at once; one that no longer is comes back when its agent has put it in
    order."""
    lost = as_lost(call.services.clock.now()) if is_forced else {}
    return {"is_forced_down": is_forced, **lost}


async def _write(call: Call, host: Host, fields: Mapping[str, Any]) -> Host:
    await call.store.hosts.set_fields(host.id, fields)
    return host.model_copy(update=dict(fields))


async def _switch(call: Call, name: str) -> Response:
    if name not in ("enable", "disable", "disable-log-reason") and (name != "force-down" or call.version < 11):
        raise NotFound("Unknown action", rule="service.switch")
    body = await call.read(ServiceSwitch)
    host = await call.store.hosts.get(body.host)
    if host is None or body.binary != BINARY:
        raise NotFound(f"Could not find binary {body.binary} on host {body.host}.", rule="service_exists")
    fields = _switched(name, body, call)
    await _write(call, host, fields)
    return answer({"service": _switch_view(name, body)})


def _switched(name: str, body: ServiceSwitch, call: Call) -> dict[str, Any]:
    if name == "force-down":
        if body.forced_down is None:
            raise BadRequest("'forced_down' is a required property.", rule="body.schema")
        return _forced(body.forced_down, call)
    if name == "disable-log-reason" and body.disabled_reason is None:
        raise BadRequest("'disabled_reason' is a required property.", rule="body.schema")
    return {"is_enabled": name == "enable", "disabled_reason": body.disabled_reason}


def _switch_view(name: str, body: ServiceSwitch) -> Shape:
    shape: Shape = {"host": body.host, "binary": body.binary}
    if name == "force-down":
        return shape | {"forced_down": body.forced_down}
    shape["status"] = "enabled" if name == "enable" else "disabled"
    return shape | ({"disabled_reason": body.disabled_reason} if name == "disable-log-reason" else {})


ENDPOINTS = (
    Endpoint("GET", "/os-services", list_services, "hosts:read"),
    Endpoint("PUT", "/os-services/{id}", update_service, "hosts:manage", body=ServiceChange),
)
