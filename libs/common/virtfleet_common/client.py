"""The fleet from a program: commands with their answers, and events, over AMQP.

    async with FleetClient("amqp://user:password@broker/") as fleet:
        accepted = await fleet.command(RebootInstance(instance_id="...", type="HARD"))
        async for event in fleet.events("instance.reboot.#"):
            print(event.key, event.data["after"])

The client declares no exchange: a broker user needs to write `virtfleet.commands`, to read `virtfleet.events`, and to
have queues that the broker names.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import uuid4

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractIncomingMessage
from aio_pika.exceptions import AMQPException, AuthenticationError, ProbableAuthenticationError, PublishError
from aiormq.exceptions import ChannelAccessRefused
from pydantic import ValidationError
from yarl import URL

from virtfleet_common import errors, messages
from virtfleet_common.bus import COMMANDS, EVENTS, Outgoing, read_event
from virtfleet_common.errors import BadMessage, BusUnavailable, Forbidden, Refused, Unauthorized, Unroutable
from virtfleet_common.messages import Command, CommandAccepted, CommandRejected
from virtfleet_common.rabbit import cancellable, connect, is_alive, within

log = structlog.get_logger()
_KEYS = {model: key for key, model in messages.COMMANDS.items()}
_REFUSALS = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Refused)}
_BROKEN = (AMQPException, ConnectionError, OSError, RuntimeError)
_CONNECT_TIMEOUT = 10.0
_RETRY_DELAY = 0.5
_PREFETCH = 256


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """An event as it was published; `id` is the same in every copy of it."""

    key: str
    id: str
    type: str
    time: datetime | None
    data: Mapping[str, Any]


class FleetClient:
    """A program's connection to the fleet, made again when a command finds it lost."""

    def __init__(self, url: str, *, source: str = "virtfleet/client") -> None:
        self._url = url
        self._source = source
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchange: AbstractExchange | None = None
        self._reply_to = ""
        self._waiting: dict[str, asyncio.Future[CommandAccepted]] = {}

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await self._commands()
        except (AuthenticationError, ProbableAuthenticationError) as error:
            raise Unauthorized(f"the broker refused the login: {error}", rule="broker_login") from error
        except _BROKEN as error:
            raise BusUnavailable(f"the broker cannot be reached: {error!r}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop()

    async def command(
        self, command: Command, *, message_id: str | None = None, timeout: float = 10.0
    ) -> CommandAccepted:
        """Send a command and wait for its answer.

        While the broker is away or the answer is lost, it is sent again under the same message id, which is answered
        with the first answer: so a command is accepted once, and a program that crashed may ask again with its id.
        Raises Refused (the class that refused), Unroutable when nobody takes commands, and BusUnavailable when there
        was no answer within `timeout` seconds.
        """
        key = _KEYS[type(command)]
        id_ = message_id or uuid4().hex
        try:
            async with asyncio.timeout(timeout):
                while True:
                    answer = await self._asked(key, command, id_)
                    if answer is not None:
                        return answer
                    await asyncio.sleep(_RETRY_DELAY)
        except TimeoutError as error:
            raise BusUnavailable(f"no answer to {key} within {timeout} s", key=key, message_id=id_) from error

    async def events(self, *keys: str) -> AsyncGenerator[FleetEvent, None]:
        """Events whose key matches one of the patterns (`*` one word, `#` any number; none: all), from now on.

        Raises BusUnavailable when the connection is lost: events may have been missed, so read the state again first.
        """
        async with self.subscribed(*keys) as arriving:
            async for event in arriving:
                yield event

    @asynccontextmanager
    async def subscribed(self, *keys: str) -> AsyncIterator[AsyncIterator[FleetEvent]]:
        """`events`, of which none is missed from the entry of the context on, whenever the reading begins."""
        arrived: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
        try:
            async with within(_CONNECT_TIMEOUT):
                channel = await self._subscribe(keys or ("#",), arrived)
        except _BROKEN as error:
            raise BusUnavailable(f"the broker gave no events: {error!r}") from error
        try:
            yield _read(arrived)
        finally:
            with suppress(*_BROKEN):
                async with within(_CONNECT_TIMEOUT):
                    await channel.close()

    async def _asked(self, key: str, command: Command, id_: str) -> CommandAccepted | None:
        """The answer; None if the broker was away, before or after it got the command."""
        asked = uuid4().hex
        answer: asyncio.Future[CommandAccepted] = asyncio.get_running_loop().create_future()
        self._waiting[asked] = answer
        try:
            with cancellable():
                exchange = await self._commands()
                await exchange.publish(self._on_wire(key, command, id_, asked), key, mandatory=True)
                return await answer
        except PublishError as error:
            raise Unroutable(f"nobody takes {key}", key=key) from error
        except ChannelAccessRefused as error:
            raise Forbidden(f"the broker refused {key}: {error}", rule="broker_permission") from error
        except _BROKEN as error:
            log.info("command.unanswered", key=key, error=repr(error))
            return None
        finally:
            del self._waiting[asked]

    def _on_wire(self, key: str, command: Command, id_: str, asked: str) -> aio_pika.Message:
        wire = Outgoing(COMMANDS, key, f"virtfleet.{key}", command, self._source, id=id_).on_wire()
        return aio_pika.Message(
            wire.body,
            headers=dict(wire.headers),
            content_type=wire.content_type,
            message_id=id_,
            correlation_id=asked,
            reply_to=self._reply_to,
            user_id=URL(self._url).user,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )

    async def _commands(self) -> AbstractExchange:
        async with self._lock:
            if self._exchange is None or self._channel is None or self._channel.is_closed:
                connection = await self._connected()
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                channel.close_callbacks.add(lambda _channel, error: self._lose(error))
                # A queue of its own: the broker calls direct replies (amq.rabbitmq.reply-to) unroutable when mandatory.
                replies = await channel.declare_queue(exclusive=True)
                await replies.consume(self._take_reply, no_ack=True)
                self._reply_to = replies.name
                self._channel, self._exchange = channel, await channel.get_exchange(COMMANDS, ensure=False)
            return self._exchange

    async def _connected(self) -> AbstractConnection:
        if self._connection is None or not is_alive(self._connection):
            await self._drop()
            self._connection = await connect(self._url, self._source)
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None:
            with suppress(*_BROKEN):
                async with within(_CONNECT_TIMEOUT):
                    await connection.close()

    def _lose(self, error: BaseException | None) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionError(f"the connection was lost before the answer came: {error!r}"))

    async def _take_reply(self, message: AbstractIncomingMessage) -> None:
        answer = self._waiting.get(message.correlation_id or "")
        if answer is None or answer.done():
            return
        try:
            answer.set_result(_as_answer(message))
        except (Refused, BadMessage) as error:
            answer.set_exception(error)

    async def _subscribe(
        self, keys: tuple[str, ...], arrived: "asyncio.Queue[AbstractIncomingMessage | None]"
    ) -> AbstractChannel:
        async with self._lock:
            connection = await self._connected()
        channel = await connection.channel(publisher_confirms=False)
        channel.close_callbacks.add(lambda _channel, _error: arrived.put_nowait(None))
        await channel.set_qos(prefetch_count=_PREFETCH)
        queue = await channel.declare_queue(exclusive=True)
        for key in keys:
            await queue.bind(EVENTS, key)
        await queue.consume(arrived.put)
        return channel


async def _read(arrived: "asyncio.Queue[AbstractIncomingMessage | None]") -> AsyncIterator[FleetEvent]:
    while (message := await arrived.get()) is not None:
        with suppress(*_BROKEN), cancellable():  # the broker is gone; what had arrived is told first
            await message.ack()
        try:
            event = _as_event(message)
        except BadMessage as error:
            log.warning("event.unreadable", key=message.routing_key, error=error.message)
        else:
            yield event
    raise BusUnavailable("the connection was lost; events may have been missed")


def _as_event(message: AbstractIncomingMessage) -> FleetEvent:
    event = read_event(message.headers, message.content_type, message.body)
    data = event.get_data()
    if not isinstance(data, dict):
        raise BadMessage("the data of the event is no object")
    return FleetEvent(message.routing_key or "", event.get_id(), event.get_type(), event.get_time(), data)


def _as_answer(message: AbstractIncomingMessage) -> CommandAccepted:
    event = read_event(message.headers, message.content_type, message.body)
    try:
        if event.get_type().endswith(".accepted"):
            return CommandAccepted.model_validate(event.get_data())
        raise _as_refusal(CommandRejected.model_validate(event.get_data()))
    except ValidationError as error:
        raise BadMessage(f"the answer is not one of a command: {error}") from error


def _as_refusal(rejected: CommandRejected) -> Refused:
    refusal = _REFUSALS.get(rejected.code, Refused)(rejected.message, rule=rejected.rule, hint=rejected.hint)
    refusal.code = rejected.code
    return refusal
