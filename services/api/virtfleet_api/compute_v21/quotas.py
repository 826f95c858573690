"""Limits and quotas: nothing is limited yet (-1), and what a project uses is counted from its instances."""

from dataclasses import dataclass, replace

from starlette.responses import Response
from virtfleet_common.store import InstanceQuery

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.shapes import Shape
from virtfleet_api.context import Call
from virtfleet_api.policy import demand
from virtfleet_api.routing import Endpoint

UNLIMITED = -1
_PAGE = 1000
_METADATA = 128
_ALWAYS = ("cores", "instances", "key_pairs", "metadata_items", "ram", "server_group_members", "server_groups")
_UNTIL_35 = ("fixed_ips", "floating_ips", "security_group_rules", "security_groups")
_UNTIL_56 = ("injected_file_content_bytes", "injected_file_path_bytes", "injected_files")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a project's instances take, by their flavors."""

    instances: int = 0
    cores: int = 0
    ram: int = 0


async def usage_of(call: Call, project_id: str) -> Usage:
    """Count a project's instances."""
    usage = Usage()
    query = InstanceQuery(project_id=project_id, limit=_PAGE)
    while True:
        rows = await call.store.instances.find(query)
        usage = Usage(
            usage.instances + len(rows),
            usage.cores + sum(row.flavor.vcpus for row in rows),
            usage.ram + sum(row.flavor.ram_mb for row in rows),
        )
        if len(rows) < _PAGE:
            return usage
        query = replace(query, after=rows[-1])


def _kinds(version: int) -> tuple[str, ...]:
    return _ALWAYS + (_UNTIL_35 if version < 36 else ()) + (_UNTIL_56 if version < 57 else ())


def _project(call: Call, named: str | None) -> str:
    if named is not None and named != call.who.project_id:
        demand(call.who, "quotas:other_project")
    return named or call.who.project_id


async def show_limits(call: Call) -> Response:
    """The limits of a project and what it uses."""
    usage = await usage_of(call, _project(call, call.query.get("tenant_id")))
    absolute: Shape = {
        "maxTotalInstances": UNLIMITED,
        "maxTotalCores": UNLIMITED,
        "maxTotalRAMSize": UNLIMITED,
        "maxTotalKeypairs": UNLIMITED,
        "maxServerMeta": _METADATA,
        "maxServerGroups": UNLIMITED,
        "maxServerGroupMembers": UNLIMITED,
        "totalInstancesUsed": usage.instances,
        "totalCoresUsed": usage.cores,
        "totalRAMUsed": usage.ram,
        "totalServerGroupsUsed": 0,
    }
    return answer({"limits": {"rate": [], "absolute": absolute | _older(call.version)}})


def _older(version: int) -> Shape:
    networks = {
        "maxSecurityGroups": UNLIMITED, "maxSecurityGroupRules": UNLIMITED, "maxTotalFloatingIps": UNLIMITED,
        "totalSecurityGroupsUsed": 0, "totalFloatingIpsUsed": 0,
    }  # fmt: skip
    files = {"maxPersonality": 0, "maxPersonalitySize": 0}
    images = {"maxImageMeta": _METADATA}
    return (networks if version < 36 else {}) | (images if version < 39 else {}) | (files if version < 57 else {})


async def show_quota(call: Call) -> Response:
    """A project's quota."""
    return answer({"quota_set": _quota(call)})


def _quota(call: Call) -> Shape:
    project_id = _project(call, call.param("project_id"))
    limits: Shape = dict.fromkeys(_kinds(call.version), UNLIMITED)
    return {"id": project_id} | limits | {"metadata_items": _METADATA}


async def show_quota_detail(call: Call) -> Response:
    """A project's quota, and what is used of it."""
    quota = _quota(call)
    usage = await usage_of(call, quota["id"])
    used = {"instances": usage.instances, "cores": usage.cores, "ram": usage.ram}
    shapes = {
        kind: {"limit": limit, "in_use": used.get(kind, 0), "reserved": 0}
        for kind, limit in quota.items()
        if kind != "id"
    }
    return answer({"quota_set": {"id": quota["id"]} | shapes})


_QUOTA = "/os-quota-sets/{project_id}"
ENDPOINTS = (
    Endpoint("GET", "/limits", show_limits, "read"),
    Endpoint("GET", _QUOTA, show_quota, "read"),
    Endpoint("GET", _QUOTA + "/defaults", show_quota, "read"),
    Endpoint("GET", _QUOTA + "/detail", show_quota_detail, "read"),
)
