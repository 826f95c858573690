"""Limits and quotas: what a project may use of instances, vCPUs and RAM, and what it uses. The other kinds that clients
show are unlimited, and cannot be limited here."""

from typing import Annotated

from pydantic import Field
from starlette.responses import Response
from virtfleet_common import quota
from virtfleet_common.errors import BadRequest
from virtfleet_common.records import ProjectQuota

from virtfleet_api.answers import answer, empty
from virtfleet_api.budget import SHOWN, defaults_of
from virtfleet_api.compute_v21.shapes import Shape
from virtfleet_api.context import Call
from virtfleet_api.policy import demand
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body, Flag, Whole

_METADATA = 128
_OTHERS = ("key_pairs", "metadata_items", "server_group_members", "server_groups")
_UNTIL_35 = ("fixed_ips", "floating_ips", "security_group_rules", "security_groups")
_UNTIL_56 = ("injected_file_content_bytes", "injected_file_path_bytes", "injected_files")
Limit = Annotated[Whole, Field(ge=quota.UNLIMITED)]


class NewQuota(Body):
    """Limits to set; -1: unlimited. `force` takes one that is below what is used already."""

    instances: Limit | None = None
    cores: Limit | None = None
    ram: Limit | None = None
    force: Flag = False
    tenant_id: str | None = None

    def limits(self) -> dict[str, int]:
        """The limits that are given, by the names of the store."""
        given = {kind: getattr(self, shown) for kind, shown in SHOWN.items()}
        return {kind: limit for kind, limit in given.items() if limit is not None}


class UpdateQuota(Body):
    """`PUT /os-quota-sets/{project}`"""

    quota_set: NewQuota


def _project(call: Call, named: str | None) -> str:
    if named is not None and named != call.who.project_id:
        demand(call.who, "quotas:other_project")
    return named or call.who.project_id


def _limits(call: Call, project: ProjectQuota) -> dict[str, int]:
    """The limits in force, by the names that clients know."""
    limits = quota.limits_of(project, defaults_of(call.services.settings))
    return {SHOWN[kind]: limit for kind, limit in limits.items()}


def _used(project: ProjectQuota) -> dict[str, int]:
    return {shown: project.used.get(kind, 0) for kind, shown in SHOWN.items()}


async def show_limits(call: Call) -> Response:
    """The limits of a project and what it uses."""
    project_id = _project(call, call.query.get("tenant_id"))
    project = await call.store.quotas.get(project_id)
    groups = await call.store.server_groups.find({"project_id": project_id})
    limits, used = _limits(call, project), _used(project)
    absolute: Shape = {
        "maxTotalInstances": limits["instances"],
        "maxTotalCores": limits["cores"],
        "maxTotalRAMSize": limits["ram"],
        "maxTotalKeypairs": quota.UNLIMITED,
        "maxServerMeta": _METADATA,
        "maxServerGroups": quota.UNLIMITED,
        "maxServerGroupMembers": quota.UNLIMITED,
        "totalInstancesUsed": used["instances"],
        "totalCoresUsed": used["cores"],
        "totalRAMUsed": used["ram"],
        "totalServerGroupsUsed": len(groups),
    }
    return answer({"limits": {"rate": [], "absolute": absolute | _older(call.version)}})


def _older(version: int) -> Shape:
    networks = {
        "maxSecurityGroups": quota.UNLIMITED, "maxSecurityGroupRules": quota.UNLIMITED,
        "maxTotalFloatingIps": quota.UNLIMITED, "totalSecurityGroupsUsed": 0, "totalFloatingIpsUsed": 0,
    }  # fmt: skip
    files = {"maxPersonality": 0, "maxPersonalitySize": 0}
    images = {"maxImageMeta": _METADATA}
    return (networks if version < 36 else {}) | (images if version < 39 else {}) | (files if version < 57 else {})


def _quota_set(call: Call, project: ProjectQuota) -> Shape:
    """Every kind that a client of this version knows."""
    others = _OTHERS + (_UNTIL_35 if call.version < 36 else ()) + (_UNTIL_56 if call.version < 57 else ())
    return dict.fromkeys(others, quota.UNLIMITED) | {"metadata_items": _METADATA} | _limits(call, project)


async def show_quota(call: Call) -> Response:
    """A project's quota."""
    project = await call.store.quotas.get(_project(call, call.param("project_id")))
    return answer({"quota_set": {"id": project.id} | _quota_set(call, project)})


async def show_defaults(call: Call) -> Response:
    """The quota of a project that has no limits of its own."""
    project_id = _project(call, call.param("project_id"))
    return answer({"quota_set": {"id": project_id} | _quota_set(call, ProjectQuota(id=project_id))})


async def show_detail(call: Call) -> Response:
    """A project's quota, and what is used of it."""
    project = await call.store.quotas.get(_project(call, call.param("project_id")))
    used = _used(project)
    kinds = {
        kind: {"limit": limit, "in_use": used.get(kind, 0), "reserved": 0}
        for kind, limit in _quota_set(call, project).items()
    }
    return answer({"quota_set": {"id": project.id} | kinds})


async def update_quota(call: Call) -> Response:
    """Give a project limits of its own."""
    new = (await call.read(UpdateQuota)).quota_set
    project = await call.store.quotas.get(call.param("project_id"))
    limits = new.limits()
    if not new.force:
        _check(limits, project)
    if limits:
        await call.store.quotas.set_limits(project.id, limits)
    changed = await call.store.quotas.get(project.id)
    return answer({"quota_set": _quota_set(call, changed)})


def _check(limits: dict[str, int], project: ProjectQuota) -> None:
    for kind, limit in limits.items():
        used = project.used.get(kind, 0)
        if 0 <= limit < used:
            message = f"Quota limit {limit} for {SHOWN[kind]} must be greater than or equal to already used {used}."
            raise BadRequest(message, rule="quota.below_used", hint="'force' sets it all the same.")


async def delete_quota(call: Call) -> Response:
    """Take a project's own limits away: the defaults are in force again."""
    await call.store.quotas.clear_limits(call.param("project_id"))
    return empty(202)


_QUOTA = "/os-quota-sets/{project_id}"
ENDPOINTS = (
    Endpoint("GET", "/limits", show_limits, "read"),
    Endpoint("GET", _QUOTA, show_quota, "read"),
    Endpoint("PUT", _QUOTA, update_quota, "quotas:manage", body=UpdateQuota),
    Endpoint("DELETE", _QUOTA, delete_quota, "quotas:manage"),
    Endpoint("GET", _QUOTA + "/defaults", show_defaults, "read"),
    Endpoint("GET", _QUOTA + "/detail", show_detail, "read"),
)
