"""Volumes in the shape of the Block Storage API v3: clients look them up, and admins register what storage has.

`POST /v3/{project_id}/volumes` differs from Cinder in one thing: no storage is made. The admin says in
`virtfleet:source` where the data lies (`virtfleet_common.records.volume`), and in the path for which project;
`virtfleet:readonly` keeps guests from writing. Deleting a volume forgets it, and leaves the data alone.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

from pydantic import AfterValidator, Field
from starlette.responses import Response
from virtfleet_common.errors import BadRequest, Conflict, NotFound
from virtfleet_common.records.volume import AnySource, Volume

from virtfleet_api import attach
from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.shapes import Shape, cut, micros
from virtfleet_api.context import Call
from virtfleet_api.policy import demand
from virtfleet_api.routing import OPEN, Dialect, Endpoint, Handler
from virtfleet_api.validation import Body, Flag, Whole, flag_argument

_V3 = "/volume/v3"
_LIMITED = (
    "volumes", "gigabytes", "snapshots", "backups", "backup_gigabytes", "per_volume_gigabytes", "groups",
)  # fmt: skip
_ABSENT = ("snapshots", "backups")
Text = Annotated[str, Field(max_length=255)]


class NewVolume(Body):
    """A volume to register. What Cinder's clients send besides is taken where it asks for nothing."""

    source: Annotated[AnySource, Field(alias="virtfleet:source")]
    is_readonly: Annotated[Flag, Field(alias="virtfleet:readonly")] = False
    size: Annotated[Whole, Field(ge=1)]
    id: Annotated[str, AfterValidator(lambda text: str(UUID(text)))] | None = None
    name: Text | None = None
    description: Text | None = None
    availability_zone: Literal["nova"] | None = None
    volume_type: None = None
    metadata: Annotated[dict[str, str], Field(max_length=0)] | None = None
    multiattach: Literal[False] = False


class CreateVolume(Body):
    """`POST /v3/{project_id}/volumes`"""

    volume: NewVolume


def view(volume: Volume, call: Call) -> Shape:
    """A volume in full. Where its data lies is for admins."""
    shape: Shape = _brief(volume, call) | {
        "status": volume.status,
        "size": volume.size_gb,
        "description": volume.description,
        "attachments": _attachments(volume, call),
        "availability_zone": "nova",
        "bootable": "false",
        "consistencygroup_id": None,
        "encrypted": False,
        "metadata": {"readonly": "True"} if volume.is_readonly else {},
        "multiattach": False,
        "replication_status": None,
        "snapshot_id": None,
        "source_volid": None,
        "user_id": volume.user_id,
        "volume_type": None,
        "created_at": micros(volume.created_at),
        "updated_at": micros(volume.updated_at),
        "os-vol-tenant-attr:tenant_id": volume.project_id,
    }
    return shape | ({"virtfleet:source": volume.document()["source"]} if call.who.is_admin else {})


def _brief(volume: Volume, call: Call) -> Shape:
    base, path = call.base_url, f"{volume.project_id}/volumes/{volume.id}"
    links = [{"rel": "self", "href": f"{base}{_V3}/{path}"}, {"rel": "bookmark", "href": f"{base}/volume/{path}"}]
    return {"id": volume.id, "name": volume.name, "links": links}


def _attachments(volume: Volume, call: Call) -> list[Shape]:
    has = volume.attachment
    if has is None or has.attached_at is None:
        return []
    shape = {
        "id": volume.id,
        "attachment_id": has.id,
        "volume_id": volume.id,
        "server_id": has.instance_id,
        "host_name": has.host if call.who.is_admin else None,
        "device": f"/dev/{has.device}",
        "attached_at": micros(has.attached_at),
    }
    return [shape]


def _project(call: Call) -> str:
    """The project that the path names: the caller's own, but for admins. Raises NotFound."""
    named = call.param("project_id")
    if named != call.who.project_id and not call.who.is_admin:
        raise NotFound(f"Project {named} could not be found.", rule="project_exists")
    return named


async def _listed(call: Call) -> list[Volume]:
    project_id: str | None = _project(call)
    if flag_argument("all_tenants", call.query.get("all_tenants")):
        demand(call.who, "volumes:all_tenants")
        project_id = None
    asked = {name: call.query[name] for name in ("name", "status", "id") if name in call.query}
    found = [one for one in await call.store.volumes.find(project_id=project_id) if _is_asked_for(one, asked)]
    return found[cut([one.id for one in found], call)]


def _is_asked_for(volume: Volume, asked: Mapping[str, Any]) -> bool:
    has = {"name": volume.name, "status": volume.status, "id": volume.id}
    return all(has[name] == value for name, value in asked.items())


async def list_volumes(call: Call) -> Response:
    """The volumes, by id and name."""
    return answer({"volumes": [_brief(volume, call) for volume in await _listed(call)]})


async def list_details(call: Call) -> Response:
    """The volumes, in full."""
    return answer({"volumes": [view(volume, call) for volume in await _listed(call)]})


async def _found(call: Call) -> Volume:
    id_ = call.param("id")
    _project(call)
    volume = await call.store.volumes.get(id_)
    if volume is None or not (call.who.is_admin or volume.project_id == call.who.project_id):
        raise NotFound(f"Volume {id_} could not be found.", rule="volume_exists")
    return volume


async def show_volume(call: Call) -> Response:
    """One volume."""
    return answer({"volume": view(await _found(call), call)})


async def register_volume(call: Call) -> Response:
    """Register a volume that storage has, for the project that the path names."""
    project_id, new = _project(call), (await call.read(CreateVolume)).volume
    now = call.services.clock.now()
    volume = Volume(
        id=new.id or str(uuid4()),
        name=new.name or "",
        description=new.description,
        project_id=project_id,
        user_id=call.who.user_id,
        size_gb=new.size,
        source=new.source,
        is_readonly=new.is_readonly,
        created_at=now,
        updated_at=now,
    )
    if not await call.store.volumes.add(volume):
        raise Conflict(f"Volume {volume.id} exists already.", rule="volume_id_unique")
    return answer({"volume": view(volume, call)}, 202)


async def delete_volume(call: Call) -> Response:
    """Forget a volume that no server has; its data stays where it lies."""
    volume = await _found(call)
    await attach.free_if_left(call.store, volume, call.services.clock.now())
    if not await call.store.volumes.delete(volume.id):
        message = f"Invalid volume: Volume {volume.id} status must be available to be deleted."
        raise BadRequest(message, rule="volume_available", hint="Detach it first.")
    return empty(202)


# What clients ask for in passing: nothing is limited, since nothing is made here.


async def show_quota(call: Call) -> Response:
    """No limits; with `usage`, how much there is."""
    _project(call)
    if not flag_argument("usage", call.query.get("usage")):
        return answer({"quota_set": {"id": call.param("id"), **dict.fromkeys(_LIMITED, -1)}})
    used = await _used(call, call.param("id"))
    kinds = {kind: {"limit": -1, "in_use": used.get(kind, 0), "reserved": 0} for kind in _LIMITED}
    return answer({"quota_set": {"id": call.param("id"), **kinds}})


async def show_limits(call: Call) -> Response:
    """No limits, and how much the project has."""
    used = await _used(call, _project(call))
    limits = dict.fromkeys(
        ("maxTotalVolumes", "maxTotalVolumeGigabytes", "maxTotalSnapshots", "maxTotalBackups",
         "maxTotalBackupGigabytes"), -1,
    )  # fmt: skip
    have = {"totalVolumesUsed": used["volumes"], "totalGigabytesUsed": used["gigabytes"]}
    none = dict.fromkeys(("totalSnapshotsUsed", "totalBackupsUsed", "totalBackupGigabytesUsed"), 0)
    return answer({"limits": {"rate": [], "absolute": {**limits, **have, **none}}})


async def _used(call: Call, project_id: str) -> Mapping[str, int]:
    if project_id != call.who.project_id:
        demand(call.who, "quotas:other_project")
    found = await call.store.volumes.find(project_id=project_id)
    return {"volumes": len(found), "gigabytes": sum(one.size_gb for one in found)}


def _none(kind: str) -> Handler:
    async def handler(call: Call) -> Response:
        _project(call)
        return answer({kind: []})

    handler.__doc__ = f"No {kind}."
    return handler


def _version(base_url: str) -> Shape:
    links = [{"rel": "self", "href": f"{base_url}{_V3}/"}]
    return {
        "id": "v3.0", "status": "CURRENT", "version": "3.0", "min_version": "3.0", "updated": "2018-07-17T00:00:00Z",
        "links": links,
    }  # fmt: skip


async def list_versions(call: Call) -> Response:
    """The versions of the Block Storage API."""
    return answer({"versions": [_version(call.base_url)]}, 300)


async def show_version(call: Call) -> Response:
    """The document of the one version."""
    return answer({"versions": [_version(call.base_url)]})


DIALECT = Dialect(
    "volume",
    (_V3 + "/{project_id}", "/v3/{project_id}"),
    (
        Endpoint("GET", "/volumes", list_volumes, "read"),
        Endpoint("POST", "/volumes", register_volume, "volumes:manage", body=CreateVolume),
        Endpoint("GET", "/volumes/detail", list_details, "read"),
        Endpoint("GET", "/volumes/{id}", show_volume, "read"),
        Endpoint("DELETE", "/volumes/{id}", delete_volume, "volumes:manage"),
        Endpoint("GET", "/os-quota-sets/{id}", show_quota, "read"),
        Endpoint("GET", "/os-quota-sets/{id}/defaults", show_quota, "read"),
        Endpoint("GET", "/limits", show_limits, "read"),
        *(Endpoint("GET", f"/{kind}{more}", _none(kind), "read") for kind in _ABSENT for more in ("", "/detail")),
    ),
)
VERSIONS = Dialect(
    "volume versions",
    ("/volume",),
    (Endpoint("GET", "", list_versions, OPEN), Endpoint("GET", "/v3", show_version, OPEN)),
)
