"""What clients look at in passing and Virtfleet has none of: empty lists, and 404 below them."""

from starlette.responses import Response
from virtfleet_common.errors import NotFound

from virtfleet_api.answers import answer
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint, Handler


def _none(key: str) -> Handler:
    async def handler(call: Call) -> Response:
        return answer({key: []})

    handler.__doc__ = f"No {key}."
    return handler


async def _no_such(call: Call) -> Response:
    """None of these is there."""
    raise NotFound("The resource could not be found.", rule="exists")


_LISTS = {
    "/os-keypairs": ("keypairs", "read"),
    "/os-security-groups": ("security_groups", "read"),
    "/extensions": ("extensions", "read"),
}
ENDPOINTS = tuple(
    endpoint
    for path, (key, policy) in _LISTS.items()
    for endpoint in (
        Endpoint("GET", path, _none(key), policy),
        Endpoint("GET", path + "/{id}", _no_such, policy),
    )
)
