"""Shapes that many views share: times, links, host ids, pages."""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha224
from typing import Any
from urllib.parse import urlencode

from virtfleet_common.errors import BadRequest

from virtfleet_api.context import Call
from virtfleet_api.validation import whole_argument

Shape = dict[str, Any]


def zulu(at: datetime) -> str:
    """A time in whole seconds: `2026-01-31T12:00:00Z`."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def micros(at: datetime | None) -> str | None:
    """A time as Nova writes it in extended attributes, services and actions: microseconds and no zone (UTC)."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f") if at else None


def links(base_url: str, kind: str, id_: str) -> list[Shape]:
    """The two links of a resource."""
    return [
        {"rel": "self", "href": f"{base_url}/v2.1/{kind}/{id_}"},
        {"rel": "bookmark", "href": f"{base_url}/{kind}/{id_}"},
    ]


def bookmark(base_url: str, kind: str, id_: str) -> Shape:
    """A resource named inside another: its id and one link."""
    return {"id": id_, "links": [{"rel": "bookmark", "href": f"{base_url}/{kind}/{id_}"}]}


def host_id(project_id: str, host: str | None) -> str:
    """A host as people of one project see it: the same host has the same id, and the id does not name it."""
    return sha224((project_id + host).encode()).hexdigest() if host else ""


def page_limit(call: Call) -> int:
    """The largest number of entries that an answer may have. Raises BadRequest."""
    most = call.services.settings.max_limit
    return min(most, whole_argument("limit", call.query.get("limit"), most))


def next_links(call: Call, path: str, last_id: str) -> list[Shape]:
    """The link to the page that follows one that is full."""
    kept = [(name, value) for name, value in call.query.multi_items() if name != "marker"]
    query = urlencode([*kept, ("marker", last_id)])
    return [{"rel": "next", "href": f"{call.base_url}/v2.1/{path}?{query}"}]


def cut(ids: Sequence[str], call: Call) -> slice:
    """The part of a short, wholly read list that the query's `marker` and `limit` ask for. Raises BadRequest."""
    limit = page_limit(call)
    marker = call.query.get("marker")
    if marker is None:
        return slice(0, limit)
    if marker not in ids:
        raise BadRequest(f"marker [{marker}] not found", rule="query.marker")
    start = ids.index(marker) + 1
    return slice(start, start + limit)
