"""Flavors: the sizes that servers come in."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal
from uuid import uuid4

from pydantic import Field
from starlette.responses import Response
from virtfleet_common.errors import BadRequest, Conflict, NotFound
from virtfleet_common.records import Flavor

from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.shapes import Shape, cut, links, next_links
from virtfleet_api.context import Call
from virtfleet_api.policy import may
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body, Flag, MetaKey, MetaValue, Name, Whole, flag_argument, whole_argument

AtLeastOne = Annotated[Whole, Field(ge=1)]
NotNegative = Annotated[Whole, Field(ge=0)]
Specs = Annotated[dict[MetaKey, MetaValue], Field(max_length=128)]


class NewFlavor(Body):
    """What is to be created. There are no ephemeral and no swap disks: 0 is taken, more is refused."""

    SINCE: ClassVar[Mapping[str, int]] = {"description": 55}

    name: Name
    ram: AtLeastOne
    vcpus: AtLeastOne
    disk: NotNegative
    id: str | int | None = None
    swap: Annotated[Whole, Field(ge=0, le=0)] | Literal[""] = 0
    ephemeral: Annotated[Whole, Field(ge=0, le=0)] = Field(0, alias="OS-FLV-EXT-DATA:ephemeral")
    rxtx_factor: float | str = 1.0
    is_public: Flag = Field(True, alias="os-flavor-access:is_public")
    description: Annotated[str, Field(max_length=65535)] | None = None


class CreateFlavor(Body):
    """`POST /flavors`"""

    flavor: NewFlavor


class FlavorChange(Body):
    """What may be changed: the description alone, so that a flavor's size is the same for ever."""

    description: Annotated[str, Field(max_length=65535)] | None


class UpdateFlavor(Body):
    """`PUT /flavors/{id}`"""

    flavor: FlavorChange


class SpecsBody(Body):
    """`POST /flavors/{id}/os-extra_specs`"""

    extra_specs: Specs


def brief(flavor: Flavor, call: Call) -> Shape:
    """A flavor in a plain list."""
    shape: Shape = {"id": flavor.id, "name": flavor.name, "links": links(call.base_url, "flavors", flavor.id)}
    return shape | ({"description": flavor.description} if call.version >= 55 else {})


def detail(flavor: Flavor, call: Call) -> Shape:
    """A flavor in full."""
    shape = brief(flavor, call) | {
        "ram": flavor.ram_mb,
        "vcpus": flavor.vcpus,
        "disk": flavor.disk_gb,
        "swap": 0 if call.version >= 75 else "",
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "OS-FLV-DISABLED:disabled": flavor.is_disabled,
        "os-flavor-access:is_public": flavor.is_public,
        "rxtx_factor": 1.0,
    }
    return shape | ({"extra_specs": dict(flavor.extra_specs)} if call.version >= 61 else {})


async def list_flavors(call: Call) -> Response:
    """The flavors, by id and name."""
    flavors, more = await _page(call, "flavors")
    return answer({"flavors": [brief(flavor, call) for flavor in flavors]} | more)


async def list_details(call: Call) -> Response:
    """The flavors, in full."""
    flavors, more = await _page(call, "flavors/detail")
    return answer({"flavors": [detail(flavor, call) for flavor in flavors]} | more)


async def _page(call: Call, path: str) -> tuple[list[Flavor], Shape]:
    flavors = [flavor for flavor in await call.store.flavors.find() if _is_asked_for(call, flavor)]
    window = cut([flavor.id for flavor in flavors], call)
    page = flavors[window]
    is_more = window.stop < len(flavors) and page
    return page, {"flavors_links": next_links(call, path, page[-1].id)} if is_more else {}


def _is_asked_for(call: Call, flavor: Flavor) -> bool:
    ram = whole_argument("minRam", call.query.get("minRam"), 0)
    disk = whole_argument("minDisk", call.query.get("minDisk"), 0)
    return _may_list(call, flavor) and flavor.ram_mb >= ram and flavor.disk_gb >= disk


def _may_list(call: Call, flavor: Flavor) -> bool:
    """Who manages flavors may ask for private ones (`is_public=False`), or for all (`None`); others see public ones."""
    asked = call.query.get("is_public")
    if not may(call.who, "flavors:manage"):
        return flavor.is_public
    if asked is not None and asked.lower() == "none":
        return True
    return flavor.is_public == flag_argument("is_public", asked, default=True)


async def _found(call: Call) -> Flavor:
    id_ = call.param("id")
    flavor = await call.store.flavors.get(id_)
    if flavor is None:
        raise NotFound(f"Flavor {id_} could not be found.", rule="flavor_exists")
    return flavor


async def show_flavor(call: Call) -> Response:
    """One flavor."""
    return answer({"flavor": detail(await _found(call), call)})


async def create_flavor(call: Call) -> Response:
    """Create a flavor."""
    flavor = _made(call, (await call.read(CreateFlavor)).flavor)
    if await call.store.flavors.find({"name": flavor.name}):
        raise Conflict(f"Flavor with name {flavor.name} already exists.", rule="flavor_name_unique")
    if not await call.store.flavors.add(flavor):
        raise Conflict(f"Flavor with ID {flavor.id} already exists.", rule="flavor_id_unique")
    return answer({"flavor": detail(flavor, call)})


def _made(call: Call, new: NewFlavor) -> Flavor:
    wanted = str(new.id) if new.id is not None else "auto"
    if not wanted.strip() or wanted != wanted.strip() or len(wanted) > 255:
        raise BadRequest(f"Invalid input for field/attribute flavor/id. Value: {wanted!r}.", rule="body.schema")
    return Flavor(
        id=str(uuid4()) if wanted == "auto" else wanted,
        name=new.name.strip(),
        vcpus=new.vcpus,
        ram_mb=new.ram,
        disk_gb=new.disk,
        is_public=new.is_public,
        description=new.description,
    )


async def update_flavor(call: Call) -> Response:
    """Change a flavor's description."""
    change = (await call.read(UpdateFlavor)).flavor
    flavor = (await _found(call)).model_copy(update={"description": change.description})
    await call.store.flavors.replace(flavor)
    return answer({"flavor": detail(flavor, call)})


async def delete_flavor(call: Call) -> Response:
    """Delete a flavor; servers keep their own copy of theirs."""
    flavor = await _found(call)
    await call.store.flavors.delete(flavor.id)
    return empty(202)


async def list_specs(call: Call) -> Response:
    """A flavor's extra specs."""
    return answer({"extra_specs": dict((await _found(call)).extra_specs)})


async def add_specs(call: Call) -> Response:
    """Add to a flavor's extra specs."""
    new = (await call.read(SpecsBody)).extra_specs
    flavor = await _found(call)
    await call.store.flavors.replace(flavor.model_copy(update={"extra_specs": {**flavor.extra_specs, **new}}))
    return answer({"extra_specs": new})


async def show_spec(call: Call) -> Response:
    """One of a flavor's extra specs."""
    flavor, key = await _found(call), call.param("key")
    return answer({key: _spec(flavor, key)})


async def delete_spec(call: Call) -> Response:
    """Delete one of a flavor's extra specs."""
    flavor, key = await _found(call), call.param("key")
    _spec(flavor, key)
    left = {name: value for name, value in flavor.extra_specs.items() if name != key}
    await call.store.flavors.replace(flavor.model_copy(update={"extra_specs": left}))
    return empty(200)


def _spec(flavor: Flavor, key: str) -> str:
    if key not in flavor.extra_specs:
        raise NotFound(f"Flavor {flavor.id} has no extra specs with key {key}.", rule="spec_exists")
    return flavor.extra_specs[key]


_SPECS = "/flavors/{id}/os-extra_specs"
ENDPOINTS = (
    Endpoint("GET", "/flavors", list_flavors, "read"),
    Endpoint("POST", "/flavors", create_flavor, "flavors:manage", body=CreateFlavor),
    Endpoint("GET", "/flavors/detail", list_details, "read"),
    Endpoint("GET", "/flavors/{id}", show_flavor, "read"),
    Endpoint("PUT", "/flavors/{id}", update_flavor, "flavors:manage", since=55, body=UpdateFlavor),
    Endpoint("DELETE", "/flavors/{id}", delete_flavor, "flavors:manage"),
    Endpoint("GET", _SPECS, list_specs, "read"),
    Endpoint("POST", _SPECS, add_specs, "flavors:manage", body=SpecsBody),
    Endpoint("GET", _SPECS + "/{key}", show_spec, "read"),
    Endpoint("DELETE", _SPECS + "/{key}", delete_spec, "flavors:manage"),
)
