"""The bus on RabbitMQ. See `virtfleet_common.bus` for what it promises."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPException, ChannelPreconditionFailed, PublishError
from yarl import URL

from virtfleet_common import telemetry
from virtfleet_common.bus import (
    COMMANDS,
    DEAD_LETTERS,
    DIRECT,
    EVENTS,
    REASON,
    Delivery,
    Handler,
    Outgoing,
    QueueSpec,
    handled,
)
from virtfleet_common.errors import BusUnavailable, Unroutable

log = structlog.get_logger()
_BROKEN = (AMQPException, ConnectionError, OSError, RuntimeError, TimeoutError)
_CONNECT_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 5.0
_RETRY_DELAY = 0.5
_HEARTBEAT = 10
"""Seconds, unless the URL says otherwise: a peer that vanished is given up after about three of them."""


class RabbitBus:
    """One connection to publish, one to consume, each made when first needed and again whenever it is lost."""

    def __init__(self, url: str, *, name: str, publish_timeout: float = 10.0) -> None:
        self._publisher = _Link(url, f"{name}/publish")
        self._consumer = _Link(url, f"{name}/consume")
        self._timeout = publish_timeout
        self._consumers: set[_Consumer] = set()

    @property
    def is_connected(self) -> bool:
        """Whether every consumer has its channel."""
        return all(consumer.is_consuming for consumer in self._consumers)

    async def close(self) -> None:
        """Close both connections."""
        await self._publisher.drop()
        await self._consumer.drop()

    async def rebuild(self) -> None:
        """Drop both connections; consumers and publishers make them anew."""
        await self.close()

    async def publish(self, message: Outgoing) -> None:
        """Publish and wait for the confirm. Raises BusUnavailable, or Unroutable for a mandatory message."""
        await self.send(message.exchange, message.key, _on_wire(message), mandatory=message.mandatory)
        telemetry.PUBLISHED.inc()
        if telemetry.DUPLICATES_MESSAGES and message.exchange == COMMANDS:
            await self.send(message.exchange, message.key, _on_wire(message), mandatory=False)

    async def send(self, exchange: str, key: str, wire: aio_pika.Message, *, mandatory: bool) -> None:
        """Publish what is on the wire already. Raises as `publish` does."""
        try:
            async with within(self._timeout):
                through = await self._publisher.exchange(exchange)
                await through.publish(wire, key, mandatory=mandatory)
        except PublishError as error:
            raise Unroutable(f"no queue takes {key}", key=key) from error
        except _BROKEN as error:
            raise BusUnavailable(f"the broker did not confirm {key}: {error!r}", key=key) from error

    @asynccontextmanager
    async def consume(self, queue: QueueSpec, handler: Handler) -> AsyncIterator[None]:
        """Hand every delivery of a queue to `handler`; returns once the queue is first consumed, or the broker is away.

        A channel that is lost takes no handler with it: they go on, and what they settle is settled by the redelivery.
        Leaving the context cancels the handlers and waits for them.
        """
        consumer = _Consumer(self, self._consumer, queue, handler)
        self._consumers.add(consumer)
        task = asyncio.create_task(consumer.run(), name=f"consume {queue.name}")
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(consumer.ready.wait(), _CONNECT_TIMEOUT)
            yield
        finally:
            self._consumers.discard(consumer)
            task.cancel()
            await asyncio.wait({task})


class _Consumer:
    """One queue, consumed over as many channels as it takes."""

    def __init__(self, bus: RabbitBus, link: "_Link", queue: QueueSpec, handler: Handler) -> None:
        self._bus = bus
        self._link = link
        self._queue = queue
        self._handler = handler
        self._handling: set[asyncio.Task[None]] = set()
        self.ready = asyncio.Event()
        self.is_consuming = False

    async def run(self) -> None:
        """Consume until cancelled; whatever goes wrong, begin again with a new channel."""
        error: Exception | None = None
        try:
            while True:
                was_away = error is not None
                try:
                    await self._consume_once(takes_as_is=isinstance(error, ChannelPreconditionFailed))
                    error = None
                except Exception as failure:  # the loop's edge: a consumer never ends by itself
                    error = failure
                if not was_away:  # said once, however many tries follow
                    log.warning("bus.lost", queue=self._queue.name, error=repr(error))
                await asyncio.sleep(_RETRY_DELAY)
        finally:
            while self._handling:
                for task in self._handling:
                    task.cancel()
                await asyncio.wait(self._handling)

    async def _consume_once(self, *, takes_as_is: bool) -> None:
        lost = asyncio.Event()
        async with within(_CONNECT_TIMEOUT):
            channel = await self._link.channel(lost)
        try:
            async with within(_CONNECT_TIMEOUT):
                await channel.set_qos(prefetch_count=self._queue.prefetch)
                declared = await self._declared(channel, takes_as_is=takes_as_is)
                await declared.consume(self._start)
            self.is_consuming = True
            self.ready.set()
            await lost.wait()
        finally:
            self.is_consuming = False
            await _closed(channel.close())

    async def _declared(self, channel: AbstractChannel, *, takes_as_is: bool) -> AbstractQueue:
        """The queue with its bindings. One that an earlier version declared otherwise is better than none."""
        queue = self._queue
        declared = await channel.declare_queue(
            queue.name,
            durable=queue.is_durable,
            exclusive=not queue.is_durable,
            auto_delete=not queue.is_durable,
            passive=takes_as_is,
            arguments=_arguments(queue),
        )
        for exchange, key in queue.bindings:
            await declared.bind(exchange, key)
        return declared

    async def _start(self, message: AbstractIncomingMessage) -> None:
        task = asyncio.create_task(handled(_as_delivery(message, self._queue, self._bus), self._handler, log))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)


class _Link:
    """One connection. The topology is declared with every channel, so nothing that is missing stays missing."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchanges: dict[str, AbstractExchange] = {}

    async def exchange(self, name: str) -> AbstractExchange:
        """An exchange on the connection's publishing channel."""
        if self._channel is None or self._channel.is_closed:
            async with self._lock:
                if self._channel is None or self._channel.is_closed:
                    connection = await self._connected()
                    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                    await _declare_topology(channel)
                    self._exchanges, self._channel = {}, channel
        if name not in self._exchanges:
            self._exchanges[name] = await _exchange(self._channel, name)
        return self._exchanges[name]

    async def channel(self, lost: asyncio.Event) -> AbstractChannel:
        """A new channel for one consumer. `lost` is set when it is closed, or when the broker cancels the consumer."""
        async with self._lock:
            connection = await self._connected()
        channel = await connection.channel(publisher_confirms=False)
        channel.close_callbacks.add(lambda _channel, _error: lost.set())
        underlay = await channel.get_underlay_channel()
        underlay.on_consumer_cancel_callbacks.add(lambda _frame: lost.set())
        await _declare_topology(channel)
        return channel

    async def drop(self) -> None:
        """Close the connection if there is one."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            await _closed(connection.close())

    async def _connected(self) -> AbstractConnection:
        if self._connection is None or not is_alive(self._connection):
            await self.drop()
            self._connection = await connect(self._url, self._name)
        return self._connection


async def connect(url: str, name: str) -> AbstractConnection:
    """A connection that the broker shows under `name`."""
    given = URL(url)
    with_heartbeat = given if "heartbeat" in given.query else given.update_query(heartbeat=_HEARTBEAT)
    connection = aio_pika.Connection(with_heartbeat, client_properties={"connection_name": name})
    try:
        await connection.connect(timeout=_CONNECT_TIMEOUT)
    except BaseException:
        await connection.close()
        raise
    return connection


def is_alive(connection: AbstractConnection) -> bool:
    """Whether nobody closed it: one that the broker closed is not `is_closed`, it is no longer `connected`."""
    return not connection.is_closed and connection.connected.is_set()


async def _declare_topology(channel: AbstractChannel) -> None:
    for name in (COMMANDS, EVENTS, DEAD_LETTERS):
        await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
    letters = await channel.declare_queue(DEAD_LETTERS, durable=True, arguments={"x-queue-type": "quorum"})
    await letters.bind(DEAD_LETTERS, "#")


async def _exchange(channel: AbstractChannel, name: str) -> AbstractExchange:
    return channel.default_exchange if name == DIRECT else await channel.get_exchange(name, ensure=False)


@contextmanager
def cancellable() -> Iterator[None]:
    """Cancelled is who was cancelled, and nobody else, while aiormq is at work.

    Where it closes at the same time, it raises what it closed with instead of the cancellation, and whoever was told to
    stop would go on for ever. And it cancels what waits on a connection that it gives up for its silence: a
    ConnectionError here, or whoever publishes would end.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except asyncio.CancelledError as error:
        raise ConnectionError("the connection was given up") from error
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """The bounds of everything that is asked of aiormq: what goes wrong there is one of `_BROKEN`."""
    with cancellable():
        async with asyncio.timeout(seconds):
            yield


async def _closed(closing: Awaitable[None]) -> None:
    with suppress(*_BROKEN):
        async with within(_CLOSE_TIMEOUT):
            await closing


def _arguments(queue: QueueSpec) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if queue.is_durable:
        arguments |= {"x-queue-type": "quorum", "x-delivery-limit": queue.delivery_limit}
    if queue.is_durable and not queue.may_drop:
        # At least once: a dead letter leaves its queue when the dead-letter queue has confirmed it, not before.
        arguments |= {
            "x-dead-letter-exchange": DEAD_LETTERS,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
    if queue.ttl is not None:
        arguments["x-message-ttl"] = int(queue.ttl * 1000)
    if queue.max_length is not None:
        arguments["x-max-length"] = queue.max_length
    return arguments


def _on_wire(message: Outgoing) -> aio_pika.Message:
    wire = message.on_wire()
    return aio_pika.Message(
        wire.body,
        headers=dict(wire.headers),
        content_type=wire.content_type,
        message_id=message.id,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        user_id=message.user_id,
    )


class _Settler:
    """A delivery on RabbitMQ. A tag dies with its channel: settling does nothing then, and it comes again."""

    def __init__(self, message: AbstractIncomingMessage, bus: RabbitBus) -> None:
        self._message = message
        self._bus = bus

    async def ack(self) -> None:
        await self._settle(self._message.ack())

    async def reject(self) -> None:
        await self._settle(self._message.reject(requeue=True))

    async def dead_letter(self, reason: str) -> None:
        message = self._message
        kept = aio_pika.Message(
            message.body,
            headers={**message.headers, REASON: reason[:1000]},
            content_type=message.content_type,
            message_id=message.message_id,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            reply_to=message.reply_to,
            correlation_id=message.correlation_id,
        )
        try:
            await self._bus.send(DEAD_LETTERS, message.routing_key or "", kept, mandatory=True)
        except BusUnavailable as error:
            log.warning("message.not_dead_lettered", key=message.routing_key, error=error.message)
            await self.reject()
        else:
            await self.ack()

    async def _settle(self, settling: Awaitable[None]) -> None:
        try:
            async with within(_CLOSE_TIMEOUT):
                await settling
        except _BROKEN as error:
            log.info("message.not_settled", key=self._message.routing_key, error=repr(error))


def _as_delivery(message: AbstractIncomingMessage, queue: QueueSpec, bus: RabbitBus) -> Delivery:
    count = message.headers.get("x-delivery-count")
    given_back = count if isinstance(count, int) else int(bool(message.redelivered))
    return Delivery(
        key=message.routing_key or "",
        headers=message.headers,
        content_type=message.content_type,
        body=message.body,
        settler=_Settler(message, bus),
        message_id=message.message_id,
        user_id=message.user_id,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        attempt=given_back + 1,
        is_last=given_back >= (queue.delivery_limit if queue.is_durable else 1),
    )
