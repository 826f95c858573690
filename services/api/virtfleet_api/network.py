"""What clients ask of the Network API v2.0 in passing. Virtfleet makes no networks: a server names those of its hosts.
So there are none to list, no ports, and a quota of none."""

from starlette.responses import Response
from virtfleet_common.errors import NotFound

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.shapes import Shape
from virtfleet_api.context import Call
from virtfleet_api.routing import OPEN, Dialect, Endpoint, Handler

_KINDS = ("networks", "ports", "subnets", "routers", "floatingips", "security-groups", "extensions")
_LIMITED = ("floatingip", "network", "port", "rbac_policy", "router", "security_group", "security_group_rule", "subnet")


def _error_body(status: int, message: str) -> Shape:
    """Neutron's error body."""
    return {"NeutronError": {"type": "NotFound" if status == 404 else "Error", "message": message, "detail": ""}}


def _none(kind: str) -> Handler:
    key = kind.replace("-", "_")

    async def handler(call: Call) -> Response:
        return answer({key: []})

    handler.__doc__ = f"No {kind}."
    return handler


async def _no_such(call: Call) -> Response:
    """None of these is there."""
    raise NotFound(f"{call.param('id')} could not be found.", rule="exists")


async def show_quota(call: Call) -> Response:
    """Nothing can be made here."""
    return answer({"quota": dict.fromkeys(_LIMITED, 0)})


async def show_quota_details(call: Call) -> Response:
    """Nothing can be made here, and nothing was."""
    return answer({"quota": {kind: {"limit": 0, "used": 0, "reserved": 0} for kind in _LIMITED}})


def _version(base_url: str) -> Shape:
    links = [{"rel": "self", "href": f"{base_url}/network/v2.0/"}]
    return {"id": "v2.0", "status": "CURRENT", "links": links}


async def list_versions(call: Call) -> Response:
    """The versions of the Network API."""
    return answer({"versions": [_version(call.base_url)]})


async def show_version(call: Call) -> Response:
    """The document of the one version."""
    return answer({"version": _version(call.base_url), "resources": []})


_QUOTAS = "/quotas/{project_id}"
DIALECT = Dialect(
    "network",
    ("/network/v2.0", "/v2.0"),
    (
        *(Endpoint("GET", f"/{kind}", _none(kind), "read") for kind in _KINDS),
        *(Endpoint("GET", f"/{kind}/{{id}}", _no_such, "read") for kind in _KINDS),
        Endpoint("GET", _QUOTAS, show_quota, "read"),
        Endpoint("GET", _QUOTAS + "/default", show_quota, "read"),
        Endpoint("GET", _QUOTAS + "/details.json", show_quota_details, "read"),
    ),
    _error_body,
)
VERSIONS = Dialect(
    "network versions",
    ("/network",),
    (Endpoint("GET", "", list_versions, OPEN), Endpoint("GET", "/v2.0", show_version, OPEN)),
)
