"""A Keystone v3 just large enough for the clients people have: it hands out tokens that exist already.

Tokens are made by an operator, not here. A client that wants to log in presents one in the place of a password, of a
token, or of an application credential's secret; a user and project that it names must be the token's own. The answer
holds the catalogue, all on the address by which the client came.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from starlette.responses import Response
from virtfleet_common.errors import BadRequest, NotFound, Unauthorized
from virtfleet_common.records import Token

from virtfleet_api.answers import answer
from virtfleet_api.auth import presented
from virtfleet_api.compute_v21.shapes import Shape
from virtfleet_api.context import Call
from virtfleet_api.faults import identity_body
from virtfleet_api.routing import OPEN, Dialect, Endpoint
from virtfleet_api.validation import Body

_REGION = "RegionOne"
_DOMAIN = {"id": "default", "name": "Default"}
_VALIDITY = timedelta(days=1)
"""What is said of a token that never expires: clients log in again after it."""
_REFUSED = "The request you have made requires authentication."
_SERVICES = {
    "compute": ("nova", "/v2.1"),
    "image": ("glance", "/image"),
    "network": ("neutron", "/network"),
    "volumev3": ("cinderv3", "/volume/v3/{project_id}"),
    "block-storage": ("cinder", "/volume/v3/{project_id}"),
    "identity": ("keystone", "/identity"),
}

Loose = Mapping[str, Any]


class Presented(Body):
    """How a client proves itself."""

    methods: list[Literal["token", "password", "application_credential"]]
    token: Loose | None = None
    password: Loose | None = None
    application_credential: Loose | None = None

    def secret(self) -> Any:
        """The token, from whichever place it was put in."""
        if self.token is not None:
            return self.token.get("id")
        if self.password is not None:
            return _part(self.password, "user").get("password")
        return (self.application_credential or {}).get("secret")

    def user(self) -> Loose:
        """The user it names, if it names one."""
        return _part(self.password or {}, "user")


class Auth(Body):
    """Who, and for which project."""

    identity: Presented
    scope: Loose | Literal["unscoped"] | None = None


class AuthBody(Body):
    """`POST /v3/auth/tokens`"""

    auth: Auth


def _part(where: Loose, name: str) -> Loose:
    part = where.get(name)
    return part if isinstance(part, Mapping) else {}


def _is_named(named: Loose, id_: str, name: str) -> bool:
    return bool(named.get("id", id_) == id_ and named.get("name", name) == name)


async def issue_token(call: Call) -> Response:
    """Log in: answers the token presented, what it stands for, and the catalogue."""
    auth = (await call.read(AuthBody)).auth
    secret = auth.identity.secret()
    if not isinstance(secret, str) or not secret:
        raise BadRequest("A token is expected where the password, token or secret stands.", rule="auth.secret")
    record = await call.services.authenticator.find(secret)
    project = _part(auth.scope, "project") if isinstance(auth.scope, Mapping) else {}
    if not _is_named(auth.identity.user(), record.user_id, record.user_name):
        raise Unauthorized(_REFUSED, rule="auth.user")
    if not _is_named(project, record.project_id, record.project_name):
        raise Unauthorized(_REFUSED, rule="auth.project")
    return answer({"token": _token_view(call, record, auth.identity.methods)}, 201, {"x-subject-token": secret})


async def validate_token(call: Call) -> Response:
    """What a token stands for."""
    subject = call.request.headers.get("x-subject-token") or presented(call.scope["headers"]) or ""
    try:
        record = await call.services.authenticator.find(subject)
    except Unauthorized:
        raise NotFound("Could not find token.", rule="token.unknown") from None
    return answer({"token": _token_view(call, record, ["token"])}, 200, {"x-subject-token": subject})


def _token_view(call: Call, record: Token, methods: list[Any]) -> Shape:
    now = call.services.clock.now()
    return {
        "methods": list(methods),
        "user": {
            "id": record.user_id, "name": record.user_name, "domain": _DOMAIN, "password_expires_at": None,
        },
        "project": {"id": record.project_id, "name": record.project_name, "domain": _DOMAIN},
        "is_domain": False,
        "roles": [{"id": role, "name": role} for role in record.roles],
        "catalog": _catalog(call.base_url, record.project_id),
        "issued_at": _at(now),
        "expires_at": _at(record.expires_at or now + _VALIDITY),
        "audit_ids": [record.id[:22]],
    }  # fmt: skip


def _at(when: Any) -> str:
    return str(when.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


def _catalog(base_url: str, project_id: str) -> list[Shape]:
    return [
        {
            "id": name,
            "type": kind,
            "name": name,
            "endpoints": [
                {
                    "id": f"{name}-{interface}", "interface": interface, "region": _REGION, "region_id": _REGION,
                    "url": base_url + path.format(project_id=project_id),
                }
                for interface in ("public", "internal", "admin")
            ],
        }
        for kind, (name, path) in _SERVICES.items()
    ]  # fmt: skip


async def _own(call: Call) -> Token:
    return await call.services.authenticator.find(presented(call.scope["headers"]) or "")


def _project_view(record: Token) -> Shape:
    return {
        "id": record.project_id, "name": record.project_name, "domain_id": _DOMAIN["id"], "enabled": True,
        "is_domain": False, "parent_id": _DOMAIN["id"], "description": "", "tags": [], "options": {},
    }  # fmt: skip


async def list_projects(call: Call) -> Response:
    """The caller's project."""
    record = await _own(call)
    is_asked_for = call.query.get("name") in (None, record.project_name)
    return answer({"projects": [_project_view(record)] if is_asked_for else []})


async def show_project(call: Call) -> Response:
    """The caller's project; there is no other to be seen."""
    record = await _own(call)
    if call.param("id") != record.project_id:
        raise NotFound(f"Could not find project: {call.param('id')}.", rule="project_exists")
    return answer({"project": _project_view(record)})


async def show_user(call: Call) -> Response:
    """The caller."""
    record = await _own(call)
    if call.param("id") != record.user_id:
        raise NotFound(f"Could not find user: {call.param('id')}.", rule="user_exists")
    user = {"id": record.user_id, "name": record.user_name, "domain_id": _DOMAIN["id"], "enabled": True}
    return answer({"user": user})


async def show_catalog(call: Call) -> Response:
    """The catalogue."""
    return answer({"catalog": _catalog(call.base_url, call.who.project_id)})


def _version(base_url: str) -> Shape:
    return {
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{base_url}/identity/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }  # fmt: skip


async def list_versions(call: Call) -> Response:
    """The versions of the Identity API."""
    location = {"location": f"{call.base_url}/identity/v3/"}
    return answer({"versions": {"values": [_version(call.base_url)]}}, 300, location)


async def show_version(call: Call) -> Response:
    """The document of v3."""
    return answer({"version": _version(call.base_url)})


DIALECT = Dialect(
    "identity",
    ("/identity",),
    (
        Endpoint("GET", "", list_versions, OPEN),
        Endpoint("GET", "/v3", show_version, OPEN),
        Endpoint("POST", "/v3/auth/tokens", issue_token, OPEN, body=AuthBody),
        Endpoint("GET", "/v3/auth/tokens", validate_token, "read"),
        Endpoint("GET", "/v3/auth/catalog", show_catalog, "read"),
        Endpoint("GET", "/v3/auth/projects", list_projects, "read"),
        Endpoint("GET", "/v3/projects", list_projects, "read"),
        Endpoint("GET", "/v3/projects/{id}", show_project, "read"),
        Endpoint("GET", "/v3/users/{id}", show_user, "read"),
    ),
    identity_body,
)
