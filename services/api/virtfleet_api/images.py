"""The image catalogue in the shape of the Image API v2: clients look an image up by name, and register one by address.

`POST /v2/images` differs from Glance in one thing: the file is not uploaded. `location` says where hosts fetch it (a
path or URL) and `checksum` (`sha256:<hex>`), or `os_hash_algo` with `os_hash_value`, what they must find there.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import ConfigDict, Field
from starlette.responses import Response
from virtfleet_common.errors import BadRequest, Conflict, Forbidden, NotFound
from virtfleet_common.records import Image

from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.shapes import Shape, cut, zulu
from virtfleet_api.context import Call
from virtfleet_api.policy import demand
from virtfleet_api.routing import OPEN, Dialect, Endpoint
from virtfleet_api.validation import Body, Name, Whole, validated

Checksum = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class NewImage(Body):
    """`POST /v2/images`. Further fields are properties of the image and must be strings."""

    model_config = ConfigDict(extra="allow")

    name: Name
    location: Annotated[str, Field(min_length=1, max_length=2048, pattern=r"^(/|file:|https?://)")]
    checksum: Checksum | None = None
    os_hash_algo: Literal["sha256"] = "sha256"
    os_hash_value: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    id: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    disk_format: Literal["qcow2", "raw"] = "qcow2"
    container_format: Literal["bare"] = "bare"
    visibility: Literal["public", "private"] | None = None
    size: Size = 0
    min_disk: Annotated[Whole, Field(ge=0)] = 0
    min_ram: Annotated[Whole, Field(ge=0)] = 0
    tags: Annotated[list[str], Field(max_length=0, default_factory=list)]

    def known_checksum(self) -> str:
        """The checksum, however it was given. Raises BadRequest: an image without one is not taken."""
        if self.checksum is None and self.os_hash_value is None:
            message = "'checksum' (sha256:<hex>) or 'os_hash_value' is required: hosts verify what they fetch."
            raise BadRequest(message, rule="image.checksum")
        return self.checksum or f"{self.os_hash_algo}:{self.os_hash_value}"

    def properties(self) -> dict[str, str]:
        """The further fields. Raises BadRequest."""
        extra = self.model_extra or {}
        wrong = next((name for name, value in extra.items() if not isinstance(value, str)), None)
        if wrong is not None:
            raise BadRequest(f"Invalid input for field/attribute {wrong}. It must be a string.", rule="body.schema")
        return dict(extra)


def view(image: Image, project_id: str) -> Shape:
    """An image: pure, from its record."""
    algorithm, _, digest = image.checksum.partition(":")
    return {
        **image.properties,
        "id": image.id,
        "name": image.name,
        "status": "active",
        "visibility": image.visibility,
        "disk_format": image.disk_format,
        "container_format": "bare",
        "size": image.size,
        "virtual_size": None,
        "min_disk": image.min_disk_gb,
        "min_ram": image.min_ram_mb,
        "checksum": None,  # Glance's field is an MD5, which Virtfleet does not keep
        "os_hash_algo": algorithm,
        "os_hash_value": digest,
        "os_hidden": False,
        "protected": False,
        "owner": image.project_id or project_id,
        "tags": [],
        "created_at": zulu(image.created_at),
        "updated_at": zulu(image.updated_at),
        "self": f"/v2/images/{image.id}",
        "file": f"/v2/images/{image.id}/file",
        "schema": "/v2/schemas/image",
    }


def _may_see(call: Call, image: Image) -> bool:
    return call.who.is_admin or image.visibility == "public" or image.project_id == call.who.project_id


def _is_in(value: str, wanted: str) -> bool:
    """Glance's filters: a value, or `in:` and several."""
    return value in wanted.removeprefix("in:").split(",") if wanted.startswith("in:") else value == wanted


_FILTERS: Mapping[str, Callable[[Image], str]] = {
    "id": lambda image: image.id,
    "name": lambda image: image.name,
    "visibility": lambda image: image.visibility,
    "disk_format": lambda image: image.disk_format,
    "container_format": lambda image: "bare",
    "status": lambda image: "active",
    "owner": lambda image: image.project_id or "",
}


def _is_asked_for(call: Call, image: Image) -> bool:
    asked = call.query
    return _may_see(call, image) and all(
        _is_in(attribute(image), asked[name].strip('"'))
        for name, attribute in _FILTERS.items()
        if name in asked and (name, asked[name]) != ("visibility", "all")
    )


async def list_images(call: Call) -> Response:
    """The images that the caller may use."""
    images = [image for image in await call.store.images.find() if _is_asked_for(call, image)]
    window = cut([image.id for image in images], call)
    page = images[window]
    shape: Shape = {
        "images": [view(image, call.who.project_id) for image in page],
        "first": "/v2/images",
        "schema": "/v2/schemas/images",
    }
    if page and window.stop < len(images):
        shape["next"] = f"/v2/images?limit={len(page)}&marker={page[-1].id}"
    return answer(shape)


async def _found(call: Call) -> Image:
    id_ = call.param("id")
    image = await call.store.images.get(id_)
    if image is None or not _may_see(call, image):
        raise NotFound(f"No image found with ID {id_}", rule="image_exists")
    return image


async def show_image(call: Call) -> Response:
    """One image."""
    return answer(view(await _found(call), call.who.project_id))


async def register_image(call: Call) -> Response:
    """Register an image: private to the project, unless an admin makes it public."""
    new = validated(NewImage, _without_nulls(await call.json()), call.version)
    visibility = new.visibility or ("public" if call.who.is_admin else "private")
    if visibility == "public":
        demand(call.who, "images:publicize")
    image = _made(call, new, visibility)
    if not await call.store.images.add(image):
        raise Conflict(f"Image ID {image.id} already exists!", rule="image_id_unique")
    return answer(view(image, call.who.project_id), 201, {"location": f"{call.base_url}/v2/images/{image.id}"})


def _without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _made(call: Call, new: NewImage, visibility: str) -> Image:
    now = call.services.clock.now()
    return Image(
        id=new.id or str(uuid4()),
        name=new.name,
        location=new.location,
        checksum=new.known_checksum(),
        disk_format=new.disk_format,
        size=new.size,
        min_disk_gb=new.min_disk,
        min_ram_mb=new.min_ram,
        visibility=visibility,
        project_id=call.who.project_id,
        properties=new.properties(),
        created_at=now,
        updated_at=now,
    )


async def delete_image(call: Call) -> Response:
    """Forget an image; servers keep their own copy of its record, and hosts the file they have."""
    image = await _found(call)
    if not call.who.is_admin and image.project_id != call.who.project_id:
        raise Forbidden("You are not permitted to delete this image.", rule="images.owner")
    await call.store.images.delete(image.id)
    return empty(204)


def _version(base_url: str) -> Shape:
    links = [{"rel": "self", "href": f"{base_url}/image/v2/"}]
    return {"id": "v2.0", "status": "CURRENT", "links": links}


async def list_versions(call: Call) -> Response:
    """The versions of the Image API."""
    return answer({"versions": [_version(call.base_url)]})


async def show_version(call: Call) -> Response:
    """The document of the one version: where an endpoint override leads, clients expect one."""
    return answer({"version": _version(call.base_url)})


DIALECT = Dialect(
    "image",
    ("/v2", "/image/v2"),
    (
        Endpoint("GET", "/images", list_images, "read"),
        Endpoint("POST", "/images", register_image, "images:manage", body=NewImage),
        Endpoint("GET", "/images/{id}", show_image, "read"),
        Endpoint("DELETE", "/images/{id}", delete_image, "images:manage"),
    ),
)
VERSIONS = Dialect(
    "image versions",
    ("/image",),
    (Endpoint("GET", "", list_versions, OPEN), Endpoint("GET", "/v2", show_version, OPEN)),
)
