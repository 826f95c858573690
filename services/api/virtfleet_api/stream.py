"""Events as they happen, over HTTP (server-sent events): each one a CloudEvent in JSON.

Who is no admin sees the events of their own project's instances; those of hosts and of the fleet are for admins. There
is no replay: a client that was away reads the record, which is the truth, and listens again.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from virtfleet_common.errors import BusUnavailable

from virtfleet_api.compute_v21.instance_actions import find_server
from virtfleet_api.context import Call
from virtfleet_api.identity import Identity
from virtfleet_api.routing import Dialect, Endpoint
from virtfleet_api.sources import FleetEvent

_PING = 15
_INSTANCES = "instance.#"
# Heartbeats and deltas of hosts are not listened to: they are many, and what they change is an event of its own.
_HOST_WORDS = ("up", "unknown", "down", "fenced", "fence_failed", "unresponsive", "responsive", "orphan", "alarm")
_FLEET = (*(f"host.#.{word}" for word in _HOST_WORDS), "fleet.#")


class EventStream(Response):
    """A stream that owns its subscription, and frees it when the client goes, or the service."""

    def __init__(self, stream: EventSourceResponse, subscription: AsyncExitStack) -> None:
        self._stream = stream
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until either side ends it. The subscription is left outside of what a disconnect cancels."""
        async with self._subscription:
            await self._stream(scope, receive, send)


async def stream_events(call: Call) -> Response:
    """Stream events; `instance` narrows them to one."""
    source = call.services.events
    if source is None:
        raise BusUnavailable("this service has no broker")
    patterns = await _patterns(call)
    subscription = AsyncExitStack()
    events = await subscription.enter_async_context(source.subscribe(patterns))
    stream = EventSourceResponse(_seen(events, call.who), ping=_PING, headers={"cache-control": "no-store"})
    return EventStream(stream, subscription)


async def _patterns(call: Call) -> Sequence[str]:
    instance_id = call.query.get("instance")
    if instance_id is not None:
        await find_server(call, instance_id)
        return (f"instance.*.*.{instance_id}",)
    return (_INSTANCES, *_FLEET) if call.who.is_admin else (_INSTANCES,)


async def _seen(events: AsyncIterator[FleetEvent], who: Identity) -> AsyncIterator[ServerSentEvent]:
    async for event in events:
        if who.is_admin or event.data.get("project_id") == who.project_id:
            yield ServerSentEvent(to_json(cloud_event(event)).decode(), event=event.type, id=event.id)


def cloud_event(event: FleetEvent) -> dict[str, Any]:
    """An event in the JSON form of CloudEvents 1.0; `key` is the routing key it came under."""
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": "virtfleet",
        "type": event.type,
        "subject": event.data.get("instance_id") or event.data.get("host"),
        "time": event.time,
        "datacontenttype": "application/json",
        "key": event.key,
        "data": event.data,
    }


DIALECT = Dialect("events", ("", "/v2.1"), (Endpoint("GET", "/events", stream_events, "read"),))
