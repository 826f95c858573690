"""What hangs on a server: metadata and tags, and the parts of Nova that are always empty here."""

from collections.abc import Mapping
from urllib.parse import quote

from starlette.responses import Response
from virtfleet_common.errors import BadRequest, Forbidden, NotFound
from virtfleet_common.records import Instance

from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.edits import edit
from virtfleet_api.compute_v21.server_bodies import MetadataBody, MetaItemBody, TagsBody
from virtfleet_api.compute_v21.server_view import addresses
from virtfleet_api.compute_v21.shapes import Shape
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint, Handler

_MOST_METADATA = 128
_MOST_TAGS = 50


async def _found(call: Call) -> Instance:
    return await call.services.acceptor.find(call.who, call.param("id"))


def _checked(metadata: Mapping[str, str]) -> Shape:
    if len(metadata) > _MOST_METADATA:
        raise Forbidden(f"Maximum number of metadata items exceeds {_MOST_METADATA}.", rule="quota.metadata_items")
    return {"metadata": dict(metadata)}


async def show_metadata(call: Call) -> Response:
    """A server's metadata."""
    return answer({"metadata": dict((await _found(call)).metadata)})


async def add_metadata(call: Call) -> Response:
    """Add to a server's metadata; keys that are there get the new value."""
    new = (await call.read(MetadataBody)).metadata
    server = await edit(call, lambda server: _checked({**server.metadata, **new}))
    return answer({"metadata": dict(server.metadata)})


async def replace_metadata(call: Call) -> Response:
    """Replace a server's metadata."""
    new = (await call.read(MetadataBody)).metadata
    server = await edit(call, lambda _: _checked(new))
    return answer({"metadata": dict(server.metadata)})


def _item(server: Instance, key: str) -> str:
    if key not in server.metadata:
        raise NotFound("Metadata item was not found", rule="metadata_exists")
    return server.metadata[key]


async def show_item(call: Call) -> Response:
    """One item of a server's metadata."""
    key = call.param("key")
    return answer({"meta": {key: _item(await _found(call), key)}})


async def set_item(call: Call) -> Response:
    """Set one item of a server's metadata."""
    key, meta = call.param("key"), (await call.read(MetaItemBody)).meta
    if key not in meta:
        raise BadRequest("Request body and URI mismatch", rule="metadata.key")
    await edit(call, lambda server: _checked({**server.metadata, **meta}))
    return answer({"meta": meta})


async def delete_item(call: Call) -> Response:
    """Delete one item of a server's metadata."""
    key = call.param("key")

    def without(server: Instance) -> Shape:
        _item(server, key)
        return {"metadata": {name: value for name, value in server.metadata.items() if name != key}}

    await edit(call, without)
    return empty(204)


async def show_tags(call: Call) -> Response:
    """A server's tags."""
    return answer({"tags": list((await _found(call)).tags)})


async def replace_tags(call: Call) -> Response:
    """Replace a server's tags."""
    tags = (await call.read(TagsBody)).tags
    server = await edit(call, lambda _: {} if tags is None else {"tags": sorted(set(tags))})
    return answer({"tags": list(server.tags)})


async def delete_tags(call: Call) -> Response:
    """Take all tags off a server."""
    await edit(call, lambda _: {"tags": []})
    return empty(204)


async def check_tag(call: Call) -> Response:
    """Whether a server has a tag: 204 or 404."""
    _require_tag(await _found(call), call.param("tag"))
    return empty(204)


async def add_tag(call: Call) -> Response:
    """Add a tag: 201, or 204 if the server had it."""
    tag = call.param("tag")
    if len(tag) > 60 or "," in tag:
        raise BadRequest(f"Tag '{tag[:80]}' is too long or has a comma.", rule="tag.form")
    had = tag in (await _found(call)).tags

    def with_tag(server: Instance) -> Shape:
        tags = sorted({*server.tags, tag})
        if len(tags) > _MOST_TAGS:
            raise BadRequest(f"The number of tags exceeded the per-server limit {_MOST_TAGS}", rule="tags.limit")
        return {"tags": tags}

    server = await edit(call, with_tag)
    location = f"{call.base_url}/v2.1/servers/{server.id}/tags/{quote(tag)}"
    return empty(204) if had else empty(201, {"location": location})


async def delete_tag(call: Call) -> Response:
    """Take one tag off a server."""
    tag = call.param("tag")

    def without(server: Instance) -> Shape:
        _require_tag(server, tag)
        return {"tags": [one for one in server.tags if one != tag]}

    await edit(call, without)
    return empty(204)


def _require_tag(server: Instance, tag: str) -> None:
    if tag not in server.tags:
        raise NotFound(f"Server {server.id} has no tag '{tag}'", rule="tag_exists")


async def list_addresses(call: Call) -> Response:
    """The networks of a server."""
    return answer({"addresses": addresses(await _found(call))})


async def show_addresses(call: Call) -> Response:
    """One network of a server."""
    network = call.param("network")
    known = addresses(await _found(call))
    if network not in known:
        raise NotFound("Instance is not a member of specified network", rule="network_exists")
    return answer({network: known[network]})


def _always_empty(key: str, what: str) -> Handler:
    async def handler(call: Call) -> Response:
        await _found(call)
        return answer({key: []})

    handler.__doc__ = f"The {what} of a server: none, there are none in Virtfleet."
    return handler


_META, _TAGS = "/servers/{id}/metadata", "/servers/{id}/tags"
ENDPOINTS = (
    Endpoint("GET", _META, show_metadata, "read"),
    Endpoint("POST", _META, add_metadata, "servers:metadata", body=MetadataBody),
    Endpoint("PUT", _META, replace_metadata, "servers:metadata", body=MetadataBody),
    Endpoint("GET", _META + "/{key}", show_item, "read"),
    Endpoint("PUT", _META + "/{key}", set_item, "servers:metadata", body=MetaItemBody),
    Endpoint("DELETE", _META + "/{key}", delete_item, "servers:metadata"),
    Endpoint("GET", _TAGS, show_tags, "read", since=26),
    Endpoint("PUT", _TAGS, replace_tags, "servers:tags", since=26, body=TagsBody),
    Endpoint("DELETE", _TAGS, delete_tags, "servers:tags", since=26),
    Endpoint("GET", _TAGS + "/{tag}", check_tag, "read", since=26),
    Endpoint("PUT", _TAGS + "/{tag}", add_tag, "servers:tags", since=26),
    Endpoint("DELETE", _TAGS + "/{tag}", delete_tag, "servers:tags", since=26),
    Endpoint("GET", "/servers/{id}/ips", list_addresses, "read"),
    Endpoint("GET", "/servers/{id}/ips/{network}", show_addresses, "read"),
    Endpoint("GET", "/servers/{id}/os-security-groups", _always_empty("security_groups", "security groups"), "read"),
    Endpoint(
        "GET", "/servers/{id}/os-volume_attachments", _always_empty("volumeAttachments", "attached volumes"), "read"
    ),
    Endpoint("GET", "/servers/{id}/os-interface", _always_empty("interfaceAttachments", "attached ports"), "read"),
    Endpoint("GET", "/servers/{id}/migrations", _always_empty("migrations", "live migrations"), "read", since=23),
)
