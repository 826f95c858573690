"""The bus: CloudEvents over RabbitMQ topic exchanges (aio-pika), and what both its adapters share.

Publishing and consuming use separate connections, so that back-pressure on the one does not stop acks on the other.
Every publish waits for the broker's confirm; a mandatory message that no queue takes raises Unroutable. Connections
are rebuilt from nothing whenever they are lost, topology included: a broker that forgot everything gets it all again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

import structlog
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_binary_event, to_binary_event
from cloudevents.core.exceptions import BaseCloudEventException
from cloudevents.core.v1.event import CloudEvent
from pydantic import BaseModel, ValidationError

from virtfleet_common.errors import BadMessage, Faulty

log = structlog.get_logger()
COMMANDS = "virtfleet.commands"
EVENTS = "virtfleet.events"
DEAD_LETTERS = "virtfleet.dead-letters"
DIRECT = ""
"""The default exchange: the key is the name of a queue (replies)."""
REASON = "x-virtfleet-reason"
"""The header of a dead letter that says why it is one."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish. `mandatory`: it is an error if no queue takes it. `trace_id`: 32 hex digits (W3C)."""

    exchange: str
    key: str
    type: str
    data: BaseModel | Mapping[str, Any]
    source: str
    id: str = field(default_factory=lambda: uuid4().hex)
    subject: str | None = None
    trace_id: str | None = None
    mandatory: bool = False
    reply_to: str | None = None
    correlation_id: str | None = None
    user_id: str | None = None

    def on_wire(self) -> RabbitMQMessage:
        """This message as a CloudEvent in AMQP binary mode."""
        attributes: dict[str, Any] = {
            "id": self.id, "source": self.source, "type": self.type, "specversion": "1.0",
            "time": datetime.now(UTC), "datacontenttype": "application/json",
        }  # fmt: skip
        if self.subject:
            attributes["subject"] = self.subject
        if self.trace_id:
            attributes["traceparent"] = f"00-{self.trace_id}-{uuid4().hex[:16]}-01"
        data = self.data.model_dump(mode="json") if isinstance(self.data, BaseModel) else dict(self.data)
        return to_binary_event(CloudEvent(attributes, data))


class Settler(Protocol):
    """How a delivery is given back to the broker. Never raises: what cannot be settled is delivered again."""

    async def ack(self) -> None:
        """The message is done with."""
        ...

    async def reject(self) -> None:
        """The message could not be handled now: deliver it again, up to the queue's delivery limit."""
        ...

    async def dead_letter(self, reason: str) -> None:
        """The message can never be handled: keep it in the dead-letter queue, with the reason."""
        ...


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as it arrived. Exactly one of ack, reject and dead_letter settles it.

    `attempt` counts its deliveries; `is_last`: given back once more, the broker would take it out of its queue.
    """

    key: str
    headers: Mapping[str, Any]
    content_type: str | None
    body: bytes
    settler: Settler
    message_id: str | None = None
    user_id: str | None = None
    reply_to: str | None = None
    correlation_id: str | None = None
    attempt: int = 1
    is_last: bool = False

    @property
    def event(self) -> CloudEvent:
        """The message as a CloudEvent. Raises BadMessage if it is none."""
        return read_event(self.headers, self.content_type, self.body)

    def read(self, model: type["Model"]) -> "Model":
        """The data as `model`. Raises BadMessage if the message is no CloudEvent or the data does not fit."""
        data = self.event.get_data()
        try:
            return model.model_validate(data)
        except ValidationError as error:
            raise BadMessage(f"data is not a {model.__name__}: {_first_error(error)}") from error

    @property
    def trace_id(self) -> str | None:
        """The W3C trace id the message carries, if it is well formed."""
        parts = str(self.headers.get("ce-traceparent") or self.headers.get("traceparent") or "").split("-")
        return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


def read_event(headers: Mapping[str, Any], content_type: str | None, body: bytes) -> CloudEvent:
    """A message of the wire as a CloudEvent. Raises BadMessage if it is none in binary mode."""
    text = {name: str(value) for name, value in headers.items() if name.lower().startswith("ce-")}
    try:
        return from_binary_event(RabbitMQMessage(text, content_type, body))
    except (BaseCloudEventException, ValueError) as error:
        raise BadMessage(f"not a CloudEvent in binary mode: {error}") from error


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "the data"
    return f"{where}: {first['msg']}"


Handler = Callable[[Delivery], Awaitable[None]]
Model = Any


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue and what it is for. Durable ones are quorum queues with a delivery limit and dead-lettering; temporary
    ones are exclusive to their connection, and deliver a message at most twice.

    `ttl` in seconds, `max_length` in messages: a queue with either drops its oldest, which are no dead letters.
    """

    name: str
    bindings: Sequence[tuple[str, str]]
    is_durable: bool = True
    prefetch: int = 64
    delivery_limit: int = 5
    ttl: float | None = None
    max_length: int | None = None

    @property
    def may_drop(self) -> bool:
        """Whether its messages may be dropped, because newer ones say it all."""
        return self.ttl is not None or self.max_length is not None


class Bus(Protocol):
    """What a service asks of the broker."""

    async def publish(self, message: Outgoing) -> None:
        """Publish and wait for the confirm. Raises BusUnavailable, or Unroutable for a mandatory message."""
        ...

    @asynccontextmanager
    def consume(self, queue: QueueSpec, handler: Handler) -> AsyncIterator[None]:
        """Hand every delivery of a queue to `handler`, up to `prefetch` at once, for as long as the context lasts."""
        ...

    async def rebuild(self) -> None:
        """Drop the connections and make them anew (they look alive and are deaf)."""
        ...

    @property
    def is_connected(self) -> bool:
        """Whether every consumer has its channel."""
        ...


async def try_publish(bus: Bus, message: Outgoing) -> bool:
    """Publish; False, and a warning in the log, if the broker did not take it."""
    try:
        await bus.publish(message)
    except Faulty as error:
        log.warning("publish.failed", key=message.key, error=error.message)
        return False
    return True


_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0


async def handled(delivery: Delivery, handler: Handler, log: Any) -> None:
    """The edge of every consumer: what a handler raises is logged and decides how the delivery is settled.

    A bad message is dead-lettered with its reason. Anything else gives it back after a pause that doubles each time, so
    that a database that is away for a while costs no message all its deliveries; the last one dead-letters it.
    """
    try:
        await handler(delivery)
    except BadMessage as error:
        log.warning("message.dead_lettered", key=delivery.key, reason=error.message)
        await delivery.settler.dead_letter(error.message)
    except Exception as error:
        log.exception("message.failed", key=delivery.key, attempt=delivery.attempt)
        if delivery.is_last:
            await delivery.settler.dead_letter(f"failed {delivery.attempt} times, at last with {error!r}")
        else:
            await asyncio.sleep(min(_SHORTEST_PAUSE * 2 ** (delivery.attempt - 1), _LONGEST_PAUSE))
            await delivery.settler.reject()
