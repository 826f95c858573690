"""os-aggregates: hosts with something in common. One with an availability zone puts its hosts into it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response
from virtfleet_common.errors import BadRequest, Conflict, NotFound, Refused
from virtfleet_common.records import Aggregate, Host
from virtfleet_common.store import InstanceQuery

from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.services import ZONE, zone_of
from virtfleet_api.compute_v21.shapes import Shape, micros
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body, MetaKey, MetaValue, Name, validated

ZoneName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^:]+$")]


class NewAggregate(Body):
    """What is to be created."""

    name: Name
    availability_zone: ZoneName | None = None


class CreateAggregate(Body):
    """`POST /os-aggregates`"""

    aggregate: NewAggregate


class AggregateChange(Body):
    """What is to be changed; at least one of the two."""

    name: Name | None = None
    availability_zone: ZoneName | None = None


class UpdateAggregate(Body):
    """`PUT /os-aggregates/{id}`"""

    aggregate: AggregateChange


class NamedHost(Body):
    """`{"add_host": {"host": "..."}}`, `{"remove_host": {"host": "..."}}`"""

    host: Annotated[str, Field(min_length=1, max_length=255)]


class SetMetadata(Body):
    """`{"set_metadata": {"metadata": {...}}}`; null takes a key away."""

    metadata: dict[MetaKey, MetaValue | None]


class AggregateAction(Body):
    """One of add_host, remove_host, set_metadata."""

    add_host: NamedHost | None = None
    remove_host: NamedHost | None = None
    set_metadata: SetMetadata | None = None


def view(aggregate: Aggregate, version: int) -> Shape:
    """An aggregate: pure, from its record."""
    shape: Shape = {
        "id": aggregate.id,
        "name": aggregate.name,
        "availability_zone": aggregate.metadata.get(ZONE),
        "hosts": list(aggregate.hosts),
        "metadata": dict(aggregate.metadata),
        "created_at": micros(aggregate.created_at),
        "updated_at": micros(aggregate.updated_at),
        "deleted": False,
        "deleted_at": None,
    }
    return shape | ({"uuid": aggregate.uuid} if version >= 41 else {})


def _answer(call: Call, aggregate: Aggregate) -> Response:
    return answer({"aggregate": view(aggregate, call.version)})


async def list_aggregates(call: Call) -> Response:
    """The aggregates."""
    return answer({"aggregates": [view(one, call.version) for one in await call.store.aggregates.find()]})


async def create_aggregate(call: Call) -> Response:
    """Create an aggregate without hosts."""
    new = (await call.read(CreateAggregate)).aggregate
    zone = {ZONE: new.availability_zone} if new.availability_zone else {}
    made = await call.store.aggregates.create(new.name.strip(), zone)
    if made is None:
        raise _taken(new.name)
    shape = view(made, call.version)
    del shape["hosts"], shape["metadata"]  # as Nova answers a create
    return answer({"aggregate": shape})


def _taken(name: str) -> Conflict:
    return Conflict(f"Aggregate {name} already exists.", rule="aggregate_name_unique")


async def _found(call: Call) -> Aggregate:
    id_ = call.param("id")
    aggregate = await call.store.aggregates.get(int(id_)) if id_.isdecimal() and len(id_) < 10 else None
    if aggregate is None:
        raise NotFound(f"Aggregate {id_} could not be found.", rule="aggregate_exists")
    return aggregate


async def show_aggregate(call: Call) -> Response:
    """One aggregate."""
    return _answer(call, await _found(call))


async def update_aggregate(call: Call) -> Response:
    """Rename an aggregate, or change its availability zone."""
    change = (await call.read(UpdateAggregate)).aggregate
    if not change.model_fields_set:
        raise BadRequest("'name' or 'availability_zone' is required.", rule="body.schema")
    aggregate = await _found(call)
    metadata = {ZONE: change.availability_zone} if "availability_zone" in change.model_fields_set else {}
    return await _changed(call, aggregate, change.name, metadata)


async def _changed(call: Call, aggregate: Aggregate, name: str | None, metadata: Mapping[str, str | None]) -> Response:
    if metadata.get(ZONE, "keep") != "keep" and metadata[ZONE] != aggregate.metadata.get(ZONE):
        await _check_zone(call, aggregate, aggregate.hosts, metadata[ZONE], BadRequest)
    changed = await call.store.aggregates.change(aggregate.id, name=name and name.strip(), metadata=metadata)
    if changed is None:
        raise _taken(str(name))
    return _answer(call, changed)


async def delete_aggregate(call: Call) -> Response:
    """Delete an aggregate that holds no hosts."""
    aggregate = await _found(call)
    if not await call.store.aggregates.delete(aggregate.id):
        message = f"Cannot remove aggregate {aggregate.id}. Reason: Host aggregate is not empty."
        raise BadRequest(message, rule="aggregate_empty", hint="Remove its hosts first.")
    return empty(200)


async def act(call: Call) -> Response:
    """Add a host, remove a host, or set metadata."""
    body = await call.json()
    if len(body) != 1:
        raise BadRequest("Malformed request body: it needs exactly one action.", rule="body.one_action")
    asked = validated(AggregateAction, body, call.version)
    aggregate = await _found(call)
    if asked.add_host is not None:
        return await _add_host(call, aggregate, asked.add_host.host)
    if asked.remove_host is not None:
        return await _remove_host(call, aggregate, asked.remove_host.host)
    if asked.set_metadata is not None:
        return await _changed(call, aggregate, None, asked.set_metadata.metadata)
    raise BadRequest("An action needs its arguments.", rule="body.schema")


async def _add_host(call: Call, aggregate: Aggregate, host: str) -> Response:
    if await call.store.hosts.get(host) is None:
        raise NotFound(f"Compute host {host} could not be found.", rule="host_exists")
    zone = aggregate.metadata.get(ZONE)
    if zone is not None:
        await _check_zone(call, aggregate, [host], zone, Conflict)
    changed = await call.store.aggregates.add_host(aggregate.id, host)
    if changed is None:
        raise Conflict(f"Aggregate {aggregate.id} already has host {host}.", rule="aggregate_host_unique")
    return _answer(call, changed)


async def _remove_host(call: Call, aggregate: Aggregate, host: str) -> Response:
    changed = await call.store.aggregates.remove_host(aggregate.id, host)
    if changed is None:
        raise NotFound(f"Aggregate {aggregate.id} has no host {host}.", rule="aggregate_host_exists")
    return _answer(call, changed)


async def _check_zone(call: Call, aggregate: Aggregate, hosts: Any, zone: str | None, refusal: type[Refused]) -> None:
    """A host is in one availability zone at the most, and does not change it under the servers it has."""
    others = [one for one in await call.store.aggregates.find() if one.id != aggregate.id]
    for name in hosts:
        host = await call.store.hosts.get(name)
        if host is None:
            continue
        why = await _why_not_in(call, host, [aggregate, *others], others, zone)
        if why is not None:
            message = f"Cannot put host {name} into availability zone {zone} by aggregate {aggregate.id}. Reason: {why}"
            raise refusal(message, rule="aggregate_zone")


async def _why_not_in(
    call: Call, host: Host, before: list[Aggregate], others: list[Aggregate], zone: str | None
) -> str | None:
    elsewhere = {one.metadata[ZONE] for one in others if host.id in one.hosts and ZONE in one.metadata} - {zone}
    if zone is not None and elsewhere:
        return f"it is in availability zone {elsewhere.pop()} already."
    if zone_of(host, before) == (zone or host.availability_zone):
        return None
    has_servers = await call.store.instances.find(InstanceQuery(host=host.id, limit=1))
    return "it has servers, whose availability zone would change." if has_servers else None


_AGGREGATES = "/os-aggregates"
ENDPOINTS = (
    Endpoint("GET", _AGGREGATES, list_aggregates, "hosts:read"),
    Endpoint("POST", _AGGREGATES, create_aggregate, "hosts:manage", body=CreateAggregate),
    Endpoint("GET", _AGGREGATES + "/{id}", show_aggregate, "hosts:read"),
    Endpoint("PUT", _AGGREGATES + "/{id}", update_aggregate, "hosts:manage", body=UpdateAggregate),
    Endpoint("DELETE", _AGGREGATES + "/{id}", delete_aggregate, "hosts:manage"),
    Endpoint("POST", _AGGREGATES + "/{id}/action", act, "hosts:manage", body=AggregateAction),
)
