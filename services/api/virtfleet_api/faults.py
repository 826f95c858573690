"""Errors as OpenStack clients know them: one key named by the status, `code` and `message` below it.

What the caller can mend is told in full; what is ours is logged, and only named to the caller (no internals).
"""

from collections.abc import Mapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from virtfleet_common.errors import Faulty, Refused

from virtfleet_api.answers import answer

log = structlog.get_logger()

_NAMES = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
    409: "conflictingRequest", 413: "overLimit", 415: "badMediaType", 429: "overLimit", 501: "notImplemented",
    503: "serviceUnavailable",
}  # fmt: skip
_TITLES = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    409: "Conflict", 500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip
NO_SUCH_RESOURCE = "The resource could not be found."
NO_SUCH_METHOD = "The method is not allowed for this resource."
_OURS = "Unexpected error: it is logged under the request id of this answer."
_AWAY = "The service is unavailable at this time; the same request may work later."


def compute_body(status: int, message: str) -> dict[str, Any]:
    """Nova's error body; 401 has the shape of Keystone's middleware, which answers it in front of Nova."""
    if status == 401:
        return identity_body(status, message)
    return {_NAMES.get(status, "computeFault"): {"code": status, "message": message}}


def identity_body(status: int, message: str) -> dict[str, Any]:
    """Keystone's error body."""
    return {"error": {"code": status, "title": _TITLES.get(status, "Error"), "message": message}}


def fault_of(error: Exception) -> tuple[int, str, Mapping[str, str]]:
    """Status, message and headers that answer an error. Logs what the caller is not told."""
    if isinstance(error, HTTPException):  # Starlette's own: a body that is too large
        return error.status_code, error.detail, {}
    if isinstance(error, Refused):
        message = f"{error.message} {error.hint}" if error.hint else error.message
        return error.status, message, {"x-virtfleet-rule": error.rule}
    if isinstance(error, Faulty) and error.retryable:
        log.warning("http.unavailable", code=error.code, error=error.message)
        return 503, _AWAY, {}
    log.error("http.failed", exc_info=error)
    return 500, _OURS, {}


def compute_fault(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error answer in Nova's shape."""
    return answer(compute_body(status, message), status, headers)
