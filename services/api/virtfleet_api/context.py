"""What a handler is given: the services behind the facade, and the one call it answers."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope
from virtfleet_common.errors import BadRequest
from virtfleet_common.ports import Clock
from virtfleet_common.settings import ApiSettings
from virtfleet_common.store import Store

from virtfleet_api.accept import Acceptor
from virtfleet_api.auth import Authenticator, presented
from virtfleet_api.identity import Identity
from virtfleet_api.microversions import MINIMUM
from virtfleet_api.sources import Consoles, EventSource, Placements
from virtfleet_api.validation import validated

M = TypeVar("M", bound=BaseModel)
Readiness = Callable[[], Awaitable[str | None]]
"""Says why the service is not ready; None when it is."""

REQUEST_ID = "virtfleet.request_id"
VERSION = "virtfleet.version"
SEEN = "virtfleet.seen"
"""In the scope: what the inside tells the edge of a request, in a dictionary that copies of the scope share."""
_LARGEST_BODY = 1024 * 1024
_NOBODY = Identity("", "", frozenset())


@dataclass(frozen=True, slots=True)
class Services:
    """What stands behind the facade."""

    store: Store
    acceptor: Acceptor
    authenticator: Authenticator
    clock: Clock
    settings: ApiSettings
    events: EventSource | None = None
    consoles: Consoles | None = None
    placements: Placements | None = None
    is_ready: Readiness | None = None


class Call:
    """One request: who asks for what, in which microversion (`version`: the minor number), under which id."""

    def __init__(self, services: Services, scope: Scope, receive: Receive) -> None:
        self.services = services
        self.scope = scope
        self.request = Request(scope, receive)
        self.request_id: str = scope[REQUEST_ID]
        self.version: int = scope.get(VERSION, MINIMUM)
        self.who = _NOBODY

    async def authenticate(self) -> None:
        """Set `who`. Raises Unauthorized."""
        self.who = await self.services.authenticator.identify(presented(self.scope["headers"]))

    @property
    def store(self) -> Store:
        """Shorthand."""
        return self.services.store

    @cached_property
    def query(self) -> QueryParams:
        """The query's arguments."""
        return self.request.query_params

    @cached_property
    def base_url(self) -> str:
        """`http://HOST` as the client wrote it, so that the links of an answer lead back the way the client came."""
        host = self.request.headers.get("host") or "localhost"
        return f"{self.scope['scheme']}://{host}"

    def param(self, name: str) -> str:
        """A part of the path."""
        value: str = self.scope["path_params"][name]
        return value

    async def json(self) -> dict[str, Any]:
        """The body. Raises BadRequest if it is not a JSON object, HTTPException 413 if it is too large."""
        try:
            content = from_json(await self._body(), allow_inf_nan=False)
        except ValueError as error:
            raise BadRequest(f"Malformed request body: it is not JSON ({error}).", rule="body.json") from None
        if not isinstance(content, dict):
            raise BadRequest("Malformed request body: it is not a JSON object.", rule="body.object")
        return content

    async def _body(self) -> bytes:
        body = b""
        async for part in self.request.stream():
            body += part
            if len(body) > _LARGEST_BODY:
                raise HTTPException(413, "The body is too large.")
        return body

    async def read(self, model: type[M]) -> M:
        """The body as `model` in this call's microversion. Raises BadRequest naming the field and the rule."""
        return validated(model, await self.json(), self.version)
