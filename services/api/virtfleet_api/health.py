"""Is the service alive, is it ready, what does it count."""

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from virtfleet_common.errors import Faulty

from virtfleet_api.answers import answer
from virtfleet_api.context import Call
from virtfleet_api.routing import OPEN, Dialect, Endpoint

_PATIENCE = 2.0


async def healthz(call: Call) -> Response:
    """Alive: the loop turns."""
    return answer({"status": "ok"})


async def readyz(call: Call) -> Response:
    """Ready: the database answers, and so does what else the service asked to be looked at; 503 and why if not."""
    why = await _why_not(call)
    return answer({"status": "not ready", "reason": why}, 503) if why else answer({"status": "ready"})


async def metrics(call: Call) -> Response:
    """The counters, in the format of Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _why_not(call: Call) -> str | None:
    try:
        async with asyncio.timeout(_PATIENCE):
            await call.store.ping()
            return await call.services.is_ready() if call.services.is_ready else None
    except (Faulty, TimeoutError):
        return "the database does not answer"


DIALECT = Dialect(
    "service",
    ("",),
    (
        Endpoint("GET", "/healthz", healthz, OPEN),
        Endpoint("GET", "/readyz", readyz, OPEN),
        Endpoint("GET", "/metrics", metrics, OPEN),
    ),
)
