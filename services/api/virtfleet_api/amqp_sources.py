"""Events and console logs, from the bus."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from virtfleet_common.bus import COMMANDS, EVENTS, Bus, Delivery, Outgoing, QueueSpec
from virtfleet_common.errors import Faulty
from virtfleet_common.messages import ConsoleReply, ConsoleRequest
from virtfleet_common.records import Instance

_MOST_WAITING = 10_000
_CONSOLE_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One event as it arrived."""

    id: str
    type: str
    key: str
    data: dict[str, Any]
    time: datetime


class BusEvents:
    """Subscriptions, each with a temporary queue of its own."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    @asynccontextmanager
    async def subscribe(self, patterns: Sequence[str]) -> AsyncIterator[AsyncIterator[StreamedEvent]]:
        """The events whose key matches one of these topic patterns, until the context is left."""
        events: asyncio.Queue[StreamedEvent] = asyncio.Queue(_MOST_WAITING)

        async def take(delivery: Delivery) -> None:
            await events.put(_as_event(delivery))
            await delivery.settler.ack()

        async def arriving() -> AsyncIterator[StreamedEvent]:
            while True:
                yield await events.get()

        bindings = [(EVENTS, pattern) for pattern in patterns]
        queue = QueueSpec(f"virtfleet.stream.{uuid4().hex}", bindings, is_durable=False, max_length=_MOST_WAITING)
        async with self._bus.consume(queue, take):
            yield arriving()


def _as_event(delivery: Delivery) -> StreamedEvent:
    event = delivery.event
    data = event.get_data()
    return StreamedEvent(
        id=event.get_id(),
        type=event.get_type(),
        key=delivery.key,
        data=data if isinstance(data, dict) else {},
        time=event.get_time() or datetime.now(UTC),
    )


class ConsoleUnavailable(Faulty):
    """The host did not send the console log."""

    code, retryable = "console_unavailable", True


class BusConsoles:
    """Console logs, asked of the agent that owns them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def output(self, instance: Instance, length: int | None) -> str:
        """The last `length` lines (None: all that is kept). Raises Faulty if the host does not answer in time."""
        answered: asyncio.Future[ConsoleReply] = asyncio.get_running_loop().create_future()

        async def take(delivery: Delivery) -> None:
            await delivery.settler.ack()
            if not answered.done():
                answered.set_result(delivery.read(ConsoleReply))

        queue = QueueSpec(f"virtfleet.reply.{uuid4().hex}", [], is_durable=False)
        async with self._bus.consume(queue, take):
            await self._bus.publish(_request(instance, length, reply_to=queue.name))
            try:
                reply = await asyncio.wait_for(answered, _CONSOLE_TIMEOUT)
            except TimeoutError:
                raise ConsoleUnavailable(f"host {instance.host} did not answer in time") from None
        if reply.error is not None:
            raise ConsoleUnavailable(reply.error)
        return reply.output


def _request(instance: Instance, length: int | None, *, reply_to: str) -> Outgoing:
    asked = ConsoleRequest(instance_id=instance.id, length=length)
    return Outgoing(
        COMMANDS, f"console.{instance.host}", "virtfleet.console.read", asked, "virtfleet/api",
        subject=instance.id, reply_to=reply_to, mandatory=True,
    )  # fmt: skip
