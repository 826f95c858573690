"""The outermost layer, as plain ASGI: the request id, the microversion, both on every answer, and what is counted."""

from time import perf_counter
from uuid import uuid4

import structlog
from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from virtfleet_common.errors import Refused

from virtfleet_api.context import REQUEST_ID, SEEN, VERSION
from virtfleet_api.faults import compute_fault
from virtfleet_api.microversions import VARY, answer_headers, negotiate

COMPUTE = "/v2.1"
SECONDS = Histogram("virtfleet_http_request_seconds", "Time to answer a request", ["method", "route", "status"])
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Edge:
    """Everything passes here. A trailing slash is taken off, so that both spellings of a path are one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(scope, send)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(action_id=passage.request_id)
        try:
            if passage.is_compute:
                passage.negotiate()
        except Refused as refusal:
            await compute_fault(refusal.status, refusal.message)(scope, receive, passage.send)
        else:
            await self._app(scope, receive, passage.send)
        finally:
            passage.count()


class _Passage:
    """One request on its way through."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = f"req-{uuid4()}"
        scope[REQUEST_ID] = self.request_id
        self._seen: dict[str, str] = {}
        scope[SEEN] = self._seen
        path: str = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            path = scope["path"] = path.rstrip("/") or "/"
        self.is_compute = path.startswith(COMPUTE)
        self._scope = scope
        self._send = send
        self._start = perf_counter()
        self._status = 500
        id_ = self.request_id.encode()
        self._headers = [(b"x-openstack-request-id", id_), (b"x-compute-request-id", id_)]

    def negotiate(self) -> None:
        """Note the microversion in the scope and for the answer. Raises BadRequest, NotAcceptable."""
        self._headers.extend(VARY)
        version = self._scope[VERSION] = negotiate(self._scope["headers"])
        self._headers[2:] = answer_headers(version)

    async def send(self, message: Message) -> None:
        """Pass a part of the answer on; its start with the headers of this passage."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._headers]
        await self._send(message)

    def count(self) -> None:
        """Add this request to the histogram, under the route's template (never the path: it holds ids)."""
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        SECONDS.labels(method, self._seen.get("route", "none"), str(self._status)).observe(perf_counter() - self._start)
