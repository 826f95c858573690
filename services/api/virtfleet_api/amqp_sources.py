"""Events, console logs and dry runs of placement, from the bus."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import uuid4

from virtfleet_common.bus import COMMANDS, EVENTS, Bus, Delivery, Outgoing, QueueSpec
from virtfleet_common.errors import BadRequest, Faulty
from virtfleet_common.messages import (
    PLACEMENT_EXPLAIN,
    ConsoleReply,
    ConsoleRequest,
    Event,
    ExplainPlacement,
    PlacementExplained,
)
from virtfleet_common.records import Instance

A = TypeVar("A", bound=Event)
_MOST_WAITING = 10_000
_PATIENCE = 10.0
_SOURCE = "virtfleet/api"


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


class SchedulerUnavailable(Faulty):
    """No scheduler answered in time."""

    code, retryable = "scheduler_unavailable", True


async def _asked(bus: Bus, question: Outgoing, answers: type[A]) -> A | None:
    """The answer to a question, through a queue of its own; None if there was none in time."""
    answered: asyncio.Future[A] = asyncio.get_running_loop().create_future()

    async def take(delivery: Delivery) -> None:
        await delivery.settler.ack()
        if not answered.done():
            answered.set_result(delivery.read(answers))

    queue = QueueSpec(f"virtfleet.reply.{uuid4().hex}", [], is_durable=False)
    async with bus.consume(queue, take):
        await bus.publish(replace(question, reply_to=queue.name, mandatory=True))
        try:
            return await asyncio.wait_for(answered, _PATIENCE)
        except TimeoutError:
            return None


class BusConsoles:
    """Console logs, asked of the agent that owns them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def output(self, instance: Instance, length: int | None) -> str:
        """The last `length` lines (None: all that is kept). Raises Faulty if the host does not answer in time."""
        asked = ConsoleRequest(instance_id=instance.id, length=length)
        key = f"console.{instance.host}"
        question = Outgoing(COMMANDS, key, "virtfleet.console.read", asked, _SOURCE, subject=instance.id)
        reply = await _asked(self._bus, question, ConsoleReply)
        if reply is None:
            raise ConsoleUnavailable(f"host {instance.host} did not answer in time")
        if reply.error is not None:
            raise ConsoleUnavailable(reply.error)
        return reply.output


class BusPlacements:
    """Dry runs of placement, asked of any scheduler."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def explain(self, question: ExplainPlacement) -> PlacementExplained:
        """What a scheduler would decide now. Raises BadRequest where it says why there is no answer, Faulty if none
        answers in time."""
        asked = Outgoing(COMMANDS, PLACEMENT_EXPLAIN, "virtfleet.placement.explain", question, _SOURCE)
        explained = await _asked(self._bus, asked, PlacementExplained)
        if explained is None:
            raise SchedulerUnavailable("no scheduler answered in time")
        if explained.error is not None:
            raise BadRequest(explained.error, rule="placement")
        return explained
