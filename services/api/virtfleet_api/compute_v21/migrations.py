"""os-migrations, and the migrations under way of one server: the history of resizes, cold migrations and evacuations.

One document per move is the history; its status is written by effects, so it may lag behind the server by a moment.
"""

from dataclasses import replace

from starlette.responses import Response
from virtfleet_common.errors import BadRequest, NotFound
from virtfleet_common.records import Instance, Migration
from virtfleet_common.store import MigrationQuery

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.shapes import Shape, bookmark, micros, next_links, page_limit
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import time_argument

_PAGED_SINCE = 59
_CHANGED_BEFORE_SINCE = 66
_OWNER_SINCE = 80
_TYPES_SINCE = 23
UNDER_WAY = frozenset({"accepted", "pre-migrating", "migrating", "post-migrating", "reverting"})
"""What `servers/{id}/migrations` shows. Nova shows live migrations alone there; here it is every move under way."""
_KNOWN_TO_NOVA = """
    changes-before changes-since host hidden instance_uuid limit marker migration_type project_id source_compute status
    user_id
"""
_QUERY = frozenset(_KNOWN_TO_NOVA.split())


def view(migration: Migration, version: int) -> Shape:
    """A migration: pure, from its record."""
    shape: Shape = _ends(migration) | {
        "id": migration.number,
        "status": migration.status,
        "instance_uuid": migration.instance_id,
        "old_instance_type_id": migration.old_flavor_id,
        "new_instance_type_id": migration.new_flavor_id,
        "created_at": micros(migration.created_at),
        "updated_at": micros(migration.updated_at),
    }
    if version >= _TYPES_SINCE:
        shape["migration_type"] = migration.type
    return shape | _newer(migration, version)


def _ends(migration: Migration) -> Shape:
    return {
        "source_compute": migration.source,
        "source_node": migration.source,
        "dest_compute": migration.destination,
        "dest_node": migration.destination,
        "dest_host": migration.destination,
    }


def _newer(migration: Migration, version: int) -> Shape:
    shape: Shape = {"uuid": migration.id} if version >= _PAGED_SINCE else {}
    owner = {"user_id": migration.user_id, "project_id": migration.project_id} if version >= _OWNER_SINCE else {}
    return shape | owner


def progress_view(migration: Migration, server: Instance, version: int) -> Shape:
    """A migration under way: pure, from its record and its server's. The disk's bytes are estimated from its size."""
    size = server.flavor.disk_gb * 2**30
    done = size * server.progress // 100
    return (
        _ends(migration)
        | _newer(migration, version)
        | {
            "id": migration.number,
            "status": migration.status,
            "server_uuid": server.id,
            "created_at": micros(migration.created_at),
            "updated_at": micros(migration.updated_at),
            "memory_total_bytes": 0,
            "memory_processed_bytes": 0,
            "memory_remaining_bytes": 0,
            "disk_total_bytes": size,
            "disk_processed_bytes": done,
            "disk_remaining_bytes": size - done,
        }
    )


async def list_migrations(call: Call) -> Response:
    """The migrations, newest first."""
    query = await _query(call)
    found = await call.store.migrations.find_page(query) if query.limit else []
    shape: Shape = {"migrations": [_listed(call, one) for one in found]}
    if call.version >= _PAGED_SINCE and found and len(found) == query.limit:
        shape["migrations_links"] = next_links(call, "os-migrations", found[-1].id)
    return answer(shape)


def _listed(call: Call, migration: Migration) -> Shape:
    shape = view(migration, call.version)
    if call.version >= _TYPES_SINCE and migration.status in UNDER_WAY:
        at = f"servers/{migration.instance_id}/migrations"
        shape["links"] = [
            {"rel": "self", "href": f"{call.base_url}/v2.1/{at}/{migration.number}"},
            *bookmark(call.base_url, at, str(migration.number))["links"],
        ]
    return shape


async def _query(call: Call) -> MigrationQuery:
    asked = call.query
    query = MigrationQuery(
        instance_id=asked.get("instance_uuid"),
        status=asked.get("status"),
        type=asked.get("migration_type"),
        source=asked.get("source_compute"),
        host=asked.get("host"),
        limit=call.services.settings.max_limit,
    )
    if call.version >= _PAGED_SINCE:
        since = time_argument("changes-since", asked.get("changes-since"))
        query = replace(query, changed_since=since, limit=page_limit(call), after=await _marker(call))
    if call.version >= _CHANGED_BEFORE_SINCE:
        query = replace(query, changed_before=time_argument("changes-before", asked.get("changes-before")))
    if call.version >= _OWNER_SINCE:
        query = replace(query, user_id=asked.get("user_id"), project_id=asked.get("project_id"))
    return query


async def _marker(call: Call) -> Migration | None:
    marker = call.query.get("marker")
    if marker is None:
        return None
    found = await call.store.migrations.get(marker)
    if found is None:
        raise BadRequest(f"Marker {marker} could not be found.", rule="query.marker")
    return found


async def list_of_server(call: Call) -> Response:
    """The migrations of a server that are under way."""
    server = await call.services.acceptor.find(call.who, call.param("id"))
    found = await _under_way(call, server)
    return answer({"migrations": [progress_view(one, server, call.version) for one in found]})


async def _under_way(call: Call, server: Instance) -> list[Migration]:
    found = await call.store.migrations.find_page(MigrationQuery(instance_id=server.id))
    return [one for one in found if one.status in UNDER_WAY]


async def show_of_server(call: Call) -> Response:
    """One migration of a server, while it is under way."""
    server = await call.services.acceptor.find(call.who, call.param("id"))
    wanted = call.param("migration_id")
    found = next((one for one in await _under_way(call, server) if wanted in (str(one.number), one.id)), None)
    if found is None:
        message = f"In-progress migration {wanted} is not found for server {server.id}."
        raise NotFound(message, rule="migration_exists")
    return answer({"migration": progress_view(found, server, call.version)})


_OF_SERVER = "/servers/{id}/migrations"
ENDPOINTS = (
    Endpoint("GET", "/os-migrations", list_migrations, "hosts:read", query=_QUERY),
    Endpoint("GET", _OF_SERVER, list_of_server, "hosts:read", since=_TYPES_SINCE),
    Endpoint("GET", _OF_SERVER + "/{migration_id}", show_of_server, "hosts:read", since=_TYPES_SINCE),
)
