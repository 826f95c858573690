"""Servers: list, show, create, update, delete."""

import asyncio
import secrets
from collections.abc import Iterable, Mapping

from starlette.responses import Response
from virtfleet_common.records import Host, Instance

from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.edits import edit
from virtfleet_api.compute_v21.listing import QUERY, find_page
from virtfleet_api.compute_v21.server_bodies import CreateServer, UpdateServer
from virtfleet_api.compute_v21.server_view import Viewer, brief, core, detail, shown
from virtfleet_api.compute_v21.shapes import Shape, links, next_links
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint

_FEW = 20


def viewer_of(call: Call) -> Viewer:
    """How a call sees servers."""
    return Viewer(call.version, call.who.is_admin, call.base_url)


async def list_servers(call: Call) -> Response:
    """The servers, by id and name."""
    found, is_full = await find_page(call)
    viewer = viewer_of(call)
    return answer(_page(call, "servers", [brief(server, viewer) for server in found], is_full))


async def list_details(call: Call) -> Response:
    """The servers, in full."""
    found, is_full = await find_page(call)
    viewer, hosts = viewer_of(call), await hosts_of(call, found)
    return answer(_page(call, "servers/detail", [detail(server, viewer, hosts) for server in found], is_full))


def _page(call: Call, path: str, servers: list[Shape], is_full: bool) -> Shape:
    page: Shape = {"servers": servers}
    if is_full:
        page["servers_links"] = next_links(call, path, servers[-1]["id"])
    return page


async def hosts_of(call: Call, servers: Iterable[Instance]) -> Mapping[str, Host]:
    """The hosts of some servers, for those who may see hosts."""
    ids = {server.host for server in servers if server.host} if call.who.is_admin else set()
    if len(ids) > _FEW:
        return {host.id: host for host in await call.store.hosts.find()}
    found = await asyncio.gather(*(call.store.hosts.get(id_) for id_ in ids))
    return {host.id: host for host in found if host}


async def show_server(call: Call) -> Response:
    """One server."""
    server = await call.services.acceptor.find(call.who, call.param("id"))
    return answer({"server": shown(server, viewer_of(call), await hosts_of(call, [server]))})


async def create_servers(call: Call) -> Response:
    """Create one server, or several that share a reservation id."""
    body = await call.read(CreateServer)
    request = body.request(call.version)
    made = await call.services.acceptor.create(call.who, request, action_id=call.request_id)
    if body.server.return_reservation_id:
        return answer({"reservation_id": made[0].reservation_id}, 202)
    return _created(call, made[0], body)


def _created(call: Call, server: Instance, body: CreateServer) -> Response:
    shape = {
        "id": server.id,
        "links": links(call.base_url, "servers", server.id),
        "OS-DCF:diskConfig": body.server.disk_config or "MANUAL",
        "security_groups": [{"name": "default"}],
        "adminPass": body.server.admin_pass or secrets.token_urlsafe(9),
    }
    return answer({"server": shape}, 202, {"location": f"{call.base_url}/v2.1/servers/{server.id}"})


async def update_server(call: Call) -> Response:
    """Change a server's name or description."""
    change = (await call.read(UpdateServer)).server
    fields = {name: getattr(change, name) for name in change.model_fields_set & {"name", "description"}}
    if fields.get("name", "") is None:
        del fields["name"]
    server = await edit(call, lambda _: fields)
    viewer = viewer_of(call)
    if call.version < 75:
        return answer({"server": core(server, viewer)})
    return answer({"server": shown(server, viewer, await hosts_of(call, [server]))})


async def delete_server(call: Call) -> Response:
    """Delete a server, whatever it is doing."""
    await call.services.acceptor.act(call.who, call.param("id"), "delete", {}, action_id=call.request_id)
    return empty(204)


ENDPOINTS = (
    Endpoint("GET", "/servers", list_servers, "read", query=QUERY),
    Endpoint("POST", "/servers", create_servers, "servers:create", body=CreateServer),
    Endpoint("GET", "/servers/detail", list_details, "read", query=QUERY),
    Endpoint("GET", "/servers/{id}", show_server, "read"),
    Endpoint("PUT", "/servers/{id}", update_server, "servers:update", body=UpdateServer),
    Endpoint("DELETE", "/servers/{id}", delete_server, "servers:delete"),
)
