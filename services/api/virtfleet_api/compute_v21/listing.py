"""Lists of servers: filters, pages, and who may see whose.

What the store can look up it looks up; the other filters are predicates, and pages are read on until one is full.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from starlette.datastructures import QueryParams
from virtfleet_common.errors import BadRequest, StoreUnavailable
from virtfleet_common.records import Instance
from virtfleet_common.states import TaskState, VmState, api_status, vm_states_of_status
from virtfleet_common.store import InstanceQuery

from virtfleet_api.compute_v21.shapes import page_limit
from virtfleet_api.context import Call
from virtfleet_api.policy import demand
from virtfleet_api.validation import flag_argument, time_argument

Keep = Callable[[Instance], bool]
_EVERY_TASK: tuple[TaskState | None, ...] = (None, *TaskState)
_LONGEST_PATTERN = 255
_REGEX_REFUSED = frozenset({2, 51091})
"""MongoDB's codes: what Python takes for a regular expression, PCRE need not."""

_KNOWN_TO_NOVA = """
    access_ip_v4 access_ip_v6 all_tenants auto_disk_config availability_zone block_device_mapping changes-before
    changes-since config_drive created_at deleted description disk_config display_description display_name flavor host
    hostname image image_ref instance_type_id ip ip6 kernel_id key_name launch_index launched_at limit locked locked_by
    marker name node not-tags not-tags-any power_state progress project_id ramdisk_id reservation_id root_device_name
    soft_deleted sort_dir sort_key status tags tags-any task_state tenant_id terminated_at user_id uuid vm_state
"""
QUERY = frozenset(_KNOWN_TO_NOVA.split())


def _name_filter(pattern: str) -> str:
    if len(pattern) > _LONGEST_PATTERN:
        raise BadRequest("The name filter is too long.", rule="query.pattern")
    try:
        re.compile(pattern)
    except re.error as error:
        raise BadRequest(f"The name filter is not a regular expression: {error}.", rule="query.pattern") from None
    return pattern


def _equals(attribute: Callable[[Instance], object]) -> Callable[[str], Keep]:
    def make(wanted: str) -> Keep:
        return lambda server: str(attribute(server)) == wanted

    return make


def _tags(judge: Callable[[set[str], set[str]], bool]) -> Callable[[str], Keep]:
    def make(wanted: str) -> Keep:
        tags = set(wanted.split(","))
        return lambda server: judge(tags, set(server.tags))

    return make


def _locked(wanted: str) -> Keep:
    flag = flag_argument("locked", wanted)
    return lambda server: (server.locked_by is not None) == flag


def _changed_before(wanted: str) -> Keep:
    limit = time_argument("changes-before", wanted)
    return lambda server: limit is not None and server.updated_at <= limit


def _nothing(_: str) -> Keep:
    return lambda server: False


_PREDICATES: Mapping[str, Callable[[str], Keep]] = {
    "user_id": _equals(lambda server: server.user_id),
    "uuid": _equals(lambda server: server.id),
    "node": _equals(lambda server: server.host),
    "description": _equals(lambda server: server.description),
    "display_description": _equals(lambda server: server.description),
    "availability_zone": _equals(lambda server: server.availability_zone or "nova"),
    "vm_state": _equals(lambda server: server.vm_state),
    "task_state": _equals(lambda server: server.task_state),
    "power_state": _equals(lambda server: int(server.power_state.shown)),
    "tags": _tags(lambda wanted, has: wanted <= has),
    "tags-any": _tags(lambda wanted, has: bool(wanted & has)),
    "not-tags": _tags(lambda wanted, has: not wanted <= has),
    "not-tags-any": _tags(lambda wanted, has: not wanted & has),
    "locked": _locked,
    "changes-before": _changed_before,
    # No server has any of these here.
    "ip": _nothing,
    "ip6": _nothing,
    "key_name": _nothing,
}


async def find_page(call: Call) -> tuple[list[Instance], bool]:
    """The servers that the query asks for, newest first, and whether the page is full (there may be more)."""
    limit = page_limit(call)
    if limit == 0:
        return [], False
    query = replace(await _query(call), limit=limit)
    keep = _keep(call.query)
    if query.vm_states is not None and not query.vm_states:
        return [], False
    try:
        found = await _read(call, query, keep)
    except StoreUnavailable as error:
        if getattr(error.__cause__, "code", None) in _REGEX_REFUSED:
            raise BadRequest("The name filter is not a regular expression.", rule="query.pattern") from None
        raise
    return found, len(found) == limit


async def _read(call: Call, query: InstanceQuery, keep: Keep | None) -> list[Instance]:
    if keep is None:
        return await call.store.instances.find(query)
    found: list[Instance] = []
    while True:
        rows = await call.store.instances.find(query)
        found += filter(keep, rows)
        if len(rows) < query.limit or len(found) >= query.limit:
            return found[: query.limit]
        query = replace(query, after=rows[-1])


async def _query(call: Call) -> InstanceQuery:
    asked = call.query
    vm_states, task_states = _states(asked.getlist("status"))
    return InstanceQuery(
        project_id=_project(call),
        vm_states=vm_states,
        task_states=task_states,
        host=asked.get("host") if call.who.is_admin else None,
        name_pattern=_name_filter(asked["name"]) if asked.get("name") else None,
        flavor_id=asked.get("flavor"),
        image_id=asked.get("image"),
        reservation_id=asked.get("reservation_id"),
        changed_since=time_argument("changes-since", asked.get("changes-since")),
        is_deleted=_deleted(call),
        after=await _marker(call),
    )


def _project(call: Call) -> str | None:
    """None: every project. A project may be named by those who may see every project; others get their own."""
    if not flag_argument("all_tenants", call.query.get("all_tenants")):
        return call.who.project_id
    demand(call.who, "servers:all_tenants")
    return call.query.get("project_id") or call.query.get("tenant_id")


def _deleted(call: Call) -> bool | None:
    if call.who.is_admin and flag_argument("deleted", call.query.get("deleted")):
        return True
    wants_deleted = any(status.upper() == "DELETED" for status in call.query.getlist("status"))
    return None if "changes-since" in call.query or (wants_deleted and call.who.is_admin) else False


def _states(statuses: list[str]) -> tuple[frozenset[VmState] | None, frozenset[TaskState | None] | None]:
    """What the store looks up. One status is a set of vm_states times a set of task_states; several may be less."""
    if not statuses:
        return None, None
    vm_states = frozenset[VmState]().union(*(vm_states_of_status(status) for status in statuses))
    if len(statuses) > 1 or not vm_states:
        return vm_states, None
    wanted = statuses[0].upper()
    tasks = (task for task in _EVERY_TASK if all(api_status(vm, task) == wanted for vm in vm_states))
    return vm_states, frozenset(tasks)


def _keep(asked: QueryParams) -> Keep | None:
    tests = [_PREDICATES[name](value) for name, value in asked.items() if name in _PREDICATES]
    statuses = {status.upper() for status in asked.getlist("status")}
    if len(statuses) > 1:
        tests.append(lambda server: api_status(server.vm_state, server.task_state) in statuses)
    if not tests:
        return None
    return lambda server: all(test(server) for test in tests)


async def _marker(call: Call) -> Instance | None:
    marker = call.query.get("marker")
    if marker is None:
        return None
    found = await call.store.instances.get(marker)
    if found is None or not (call.who.is_admin or found.project_id == call.who.project_id):
        raise BadRequest(f"marker [{marker}] not found", rule="query.marker")
    return found
