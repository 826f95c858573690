"""The facade as one ASGI application, free of process concerns: who starts it hands in what stands behind it."""

from functools import cache
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from virtfleet_common.clock import SystemClock
from virtfleet_common.ports import Clock
from virtfleet_common.settings import ApiSettings
from virtfleet_common.store import Store

from virtfleet_api import compute_v21, fencing, health, images, keystone, network, placement, stream, volumes
from virtfleet_api.accept import Acceptor
from virtfleet_api.auth import Authenticator
from virtfleet_api.context import Readiness, Services
from virtfleet_api.edge import Edge
from virtfleet_api.faults import NO_SUCH_METHOD, NO_SUCH_RESOURCE, compute_fault
from virtfleet_api.openapi import openapi_of
from virtfleet_api.routing import routes_of
from virtfleet_api.sources import Consoles, EventSource, Placements

DIALECTS = (
    compute_v21.DIALECT,
    images.DIALECT,
    keystone.DIALECT,
    network.DIALECT,
    volumes.DIALECT,
    placement.DIALECT,
    fencing.DIALECT,
    health.DIALECT,
    stream.DIALECT,
    compute_v21.ROOT,
    images.VERSIONS,
    network.VERSIONS,
    volumes.VERSIONS,
)


def make_app(
    store: Store,
    acceptor: Acceptor,
    settings: ApiSettings,
    *,
    events: EventSource | None = None,
    consoles: Consoles | None = None,
    placements: Placements | None = None,
    is_ready: Readiness | None = None,
    clock: Clock | None = None,
) -> FastAPI:
    """The application. Without `events` /events answers 503, without `consoles` or `placements` what asks them 404."""
    clock = clock or SystemClock()
    authenticator = Authenticator(store, clock)
    services = Services(store, acceptor, authenticator, clock, settings, events, consoles, placements, is_ready)
    app = FastAPI(title="Virtfleet", redirect_slashes=False)
    # In front of FastAPI's own routes (its documentation), because routes are tried one after the other.
    app.router.routes[:0] = routes_of(services, DIALECTS)
    app.openapi = _document  # type: ignore[method-assign]
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_middleware(Edge)
    return app


@cache
def _document() -> dict[str, Any]:
    return openapi_of(DIALECTS, version("virtfleet-api"))


async def _unrouted(request: Request, error: Exception) -> Response:
    """What no endpoint answers: no such path, or no such method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    messages = {404: NO_SUCH_RESOURCE, 405: NO_SUCH_METHOD}
    return compute_fault(status, messages.get(status, "The request could not be handled."))
