"""os-server-groups: servers that are to be kept together or apart."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from uuid import uuid4

from pydantic import Field
from starlette.responses import Response
from virtfleet_common.errors import BadRequest, NotFound
from virtfleet_common.records import ServerGroup
from virtfleet_common.store import InstanceQuery

from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.shapes import Shape, page_limit
from virtfleet_api.context import Call
from virtfleet_api.policy import may
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body, Name, Whole, flag_argument, whole_argument

Policy = Literal["affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"]
_SOFT = ("soft-affinity", "soft-anti-affinity")
_SOFT_SINCE = 15
_ONE_POLICY_SINCE = 64


class Rules(Body):
    """How strictly: `max_server_per_host` servers of an anti-affinity group may share a host."""

    max_server_per_host: Annotated[Whole, Field(ge=1)] | None = None


class NewServerGroup(Body):
    """What is to be created: one policy, in `policies` before 2.64."""

    SINCE: ClassVar[Mapping[str, int]] = {"policy": _ONE_POLICY_SINCE, "rules": _ONE_POLICY_SINCE}
    UNTIL: ClassVar[Mapping[str, int]] = {"policies": _ONE_POLICY_SINCE - 1}

    name: Name
    policy: Policy | None = None
    policies: Annotated[list[Policy], Field(min_length=1, max_length=1)] | None = None
    rules: Rules | None = None

    def known_policy(self, version: int) -> str:
        """The policy, wherever it stands. Raises BadRequest."""
        policy = self.policy or (self.policies[0] if self.policies else None)
        if policy is None:
            name = "policy" if version >= _ONE_POLICY_SINCE else "policies"
            raise BadRequest(f"'{name}' is a required property of 'server_group'.", rule="body.schema")
        if policy in _SOFT and version < _SOFT_SINCE:
            raise BadRequest(f"Policy {policy} is known from 2.{_SOFT_SINCE} on.", rule="server_group.policy")
        if self.rules is not None and self.rules.max_server_per_host is not None and policy != "anti-affinity":
            message = "Only anti-affinity policy supports rules."
            raise BadRequest(message, rule="server_group.rules")
        return policy


class CreateServerGroup(Body):
    """`POST /os-server-groups`"""

    server_group: NewServerGroup


def view(group: ServerGroup, members: list[str], version: int) -> Shape:
    """A group: pure, from its record and its members' ids."""
    shape: Shape = {"id": group.id, "name": group.name, "members": members}
    if version >= 13:
        shape |= {"project_id": group.project_id, "user_id": group.user_id}
    if version >= _ONE_POLICY_SINCE:
        rules = {"max_server_per_host": group.max_server_per_host} if group.max_server_per_host > 1 else {}
        return shape | {"policy": group.policy, "rules": rules}
    return shape | {"policies": [group.policy], "metadata": {}}


async def _shown(call: Call, group: ServerGroup) -> Shape:
    members = await call.store.instances.find(InstanceQuery(group_id=group.id))
    return view(group, sorted(member.id for member in members), call.version)


async def list_groups(call: Call) -> Response:
    """The project's groups; every project's for an admin who asks for them."""
    is_all = flag_argument("all_projects", call.query.get("all_projects")) and may(call.who, "server_groups:all")
    groups = await call.store.server_groups.find({} if is_all else {"project_id": call.who.project_id})
    start = whole_argument("offset", call.query.get("offset"), 0)
    page = groups[start : start + page_limit(call)]
    return answer({"server_groups": [await _shown(call, group) for group in page]})


async def create_group(call: Call) -> Response:
    """Create a group, without members: servers join it as they are created, by the hint `group`."""
    new = (await call.read(CreateServerGroup)).server_group
    policy = new.known_policy(call.version)
    most = new.rules.max_server_per_host if new.rules else None
    group = ServerGroup(
        id=str(uuid4()),
        name=new.name.strip(),
        project_id=call.who.project_id,
        user_id=call.who.user_id,
        policy=policy,
        max_server_per_host=most or 1,
        created_at=call.services.clock.now(),
    )
    await call.store.server_groups.add(group)
    return answer({"server_group": view(group, [], call.version)})


async def _found(call: Call) -> ServerGroup:
    id_: Any = call.param("id")
    group = await call.store.server_groups.get(id_)
    if group is None or not (call.who.is_admin or group.project_id == call.who.project_id):
        raise NotFound(f"Instance group {id_} could not be found.", rule="server_group_exists")
    return group


async def show_group(call: Call) -> Response:
    """One group."""
    return answer({"server_group": await _shown(call, await _found(call))})


async def delete_group(call: Call) -> Response:
    """Forget a group; its servers stay, and stay where they are."""
    group = await _found(call)
    await call.store.server_groups.delete(group.id)
    return empty(204)


_GROUPS = "/os-server-groups"
ENDPOINTS = (
    Endpoint("GET", _GROUPS, list_groups, "read", query=frozenset({"all_projects", "limit", "offset"})),
    Endpoint("POST", _GROUPS, create_group, "server_groups:manage", body=CreateServerGroup),
    Endpoint("GET", _GROUPS + "/{id}", show_group, "read"),
    Endpoint("DELETE", _GROUPS + "/{id}", delete_group, "server_groups:manage"),
)
