"""From a request to its handler: a table of endpoints, read by the router, the policy check and the OpenAPI document.

Handlers take a Call and return a Response; what they raise becomes an error in the words of their dialect. Each path is
a plain ASGI application: no dependency injection on the way, which the hot path would pay for at every request.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from virtfleet_api.answers import answer
from virtfleet_api.context import SEEN, Call, Services
from virtfleet_api.faults import NO_SUCH_METHOD, NO_SUCH_RESOURCE, compute_body, fault_of
from virtfleet_api.microversions import MAXIMUM, MINIMUM
from virtfleet_api.policy import demand

Handler = Callable[[Call], Awaitable[Response]]
OPEN = None
"""The policy of endpoints that need no token."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path; `policy` None: no authentication. `query`: the arguments known from 2.75 on."""

    method: str
    path: str
    handler: Handler
    policy: str | None
    since: int = MINIMUM
    until: int = MAXIMUM
    body: type[BaseModel] | None = None
    query: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Dialect:
    """A group of endpoints below common prefixes, and how errors read there."""

    name: str
    prefixes: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    error_body: Callable[[int, str], dict[str, Any]] = compute_body


class PathApp:
    """The ASGI application of one path: its methods in one dialect."""

    def __init__(self, services: Services, dialect: Dialect, path: str, methods: Mapping[str, Endpoint]) -> None:
        self._path = path
        self._services = services
        self._error_body = dialect.error_body
        self._methods = {**methods, "HEAD": methods["GET"]} if "GET" in methods else dict(methods)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; only the sending of the answer can still fail."""
        scope[SEEN]["route"] = self._path
        call = Call(self._services, scope, receive)
        try:
            response = await self._respond(call)
        except Exception as error:  # the edge: every error becomes an answer
            response = self._refuse(call, *fault_of(error))
        await response(scope, receive, send)

    async def _respond(self, call: Call) -> Response:
        endpoint = self._methods.get(call.scope["method"])
        if endpoint is None:
            return self._refuse(call, 405, NO_SUCH_METHOD, {"allow": ", ".join(sorted(self._methods))})
        if endpoint.policy is not None:
            await call.authenticate()
        if not endpoint.since <= call.version <= endpoint.until:
            return self._refuse(call, 404, NO_SUCH_RESOURCE, {})
        if endpoint.policy is not None:
            demand(call.who, endpoint.policy)
        unknown = endpoint.query is not None and call.version >= 75 and set(call.query) - endpoint.query
        if unknown:
            message = f"Invalid input for query parameters. Additional properties are not allowed: {sorted(unknown)}."
            return self._refuse(call, 400, message, {"x-virtfleet-rule": "query.unknown"})
        return await endpoint.handler(call)

    def _refuse(self, call: Call, status: int, message: str, headers: Mapping[str, str]) -> Response:
        if status == 401:
            headers = {**headers, "www-authenticate": f'Keystone uri="{call.base_url}/identity"'}
        return answer(self._error_body(status, message), status, headers)


def routes_of(services: Services, dialects: Iterable[Dialect]) -> list[Route]:
    """The routes of some dialects, in their order: what is asked for most often comes first."""
    routes = []
    for dialect in dialects:
        for prefix in dialect.prefixes:
            for path, methods in _by_path(dialect.endpoints).items():
                full = prefix + path or "/"
                routes.append(Route(full, PathApp(services, dialect, full, methods), include_in_schema=False))
    return routes


def _by_path(endpoints: Iterable[Endpoint]) -> dict[str, dict[str, Endpoint]]:
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    return paths
