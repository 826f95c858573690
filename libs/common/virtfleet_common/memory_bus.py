"""The bus in memory, for tests: the twin of `RabbitBus`, held to it by one contract suite.

Messages pass through their wire form, so what cannot be serialised fails here too. Queues keep what the quorum queues
of the real broker promise: each message to one of the competing consumers, returned ones first, a delivery limit, dead
letters with their reason.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from virtfleet_common.bus import DEAD_LETTERS, DIRECT, REASON, Delivery, Handler, Outgoing, QueueSpec, handled
from virtfleet_common.errors import BusUnavailable, Unroutable

log = structlog.get_logger()


class MemoryBus:
    """A broker and the connection to it in one. `is_available` False: as if the broker were away."""

    def __init__(self) -> None:
        self.is_available = True
        self._queues = {DEAD_LETTERS: _Queue(QueueSpec(DEAD_LETTERS, [(DEAD_LETTERS, "#")]))}

    @property
    def is_connected(self) -> bool:
        """Whether the broker is there."""
        return self.is_available

    async def close(self) -> None:
        """Nothing to close."""

    async def rebuild(self) -> None:
        """Nothing to rebuild."""

    async def publish(self, message: Outgoing) -> None:
        """Put the message into every queue that takes its key. Raises BusUnavailable, or Unroutable if mandatory."""
        await asyncio.sleep(0)
        if not self.is_available:
            raise BusUnavailable(f"the broker did not confirm {message.key}", key=message.key)
        if not self.route(message.exchange, _on_wire(message)) and message.mandatory:
            raise Unroutable(f"no queue takes {message.key}", key=message.key)

    def route(self, exchange: str, message: "_Message") -> bool:
        """Put a message into every queue that takes it; False if none does."""
        takers = [queue for queue in self._queues.values() if queue.takes(exchange, message.key)]
        for queue in takers:
            queue.put(message)
        return bool(takers)

    @asynccontextmanager
    async def consume(self, queue: QueueSpec, handler: Handler) -> AsyncIterator[None]:
        """Hand every delivery of a queue to `handler`; leaving the context cancels the handlers and waits for them."""
        known = self._queues.setdefault(queue.name, _Queue(queue))
        known.spec = queue
        consumer = _Consumer(self, known, handler)
        task = asyncio.create_task(consumer.run(), name=f"consume {queue.name}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not queue.is_durable:
                del self._queues[queue.name]


@dataclass(frozen=True, slots=True)
class _Message:
    key: str
    headers: Mapping[str, Any]
    content_type: str | None
    body: bytes
    message_id: str | None
    user_id: str | None
    reply_to: str | None
    correlation_id: str | None
    at: float
    given_back: int = 0


class _Queue:
    """Messages that wait, oldest first."""

    def __init__(self, spec: QueueSpec) -> None:
        self.spec = spec
        self._waiting: deque[_Message] = deque()
        self._arrived = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()

    def takes(self, exchange: str, key: str) -> bool:
        if exchange == DIRECT:
            return key == self.spec.name
        return any(bound == exchange and is_match(pattern, key) for bound, pattern in self.spec.bindings)

    def put(self, message: _Message, *, first: bool = False) -> None:
        (self._waiting.appendleft if first else self._waiting.append)(message)
        while self.spec.max_length is not None and len(self._waiting) > self.spec.max_length:
            self._waiting.popleft()
        notice = asyncio.create_task(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def take(self) -> _Message:
        async with self._arrived:
            while True:
                await self._arrived.wait_for(lambda: self._waiting)
                message = self._waiting.popleft()
                if self.spec.ttl is None or asyncio.get_running_loop().time() - message.at < self.spec.ttl:
                    return message

    async def _notify(self) -> None:
        async with self._arrived:
            self._arrived.notify_all()


class _Consumer:
    """Takes messages of a queue, as many at once as its prefetch allows."""

    def __init__(self, bus: MemoryBus, queue: _Queue, handler: Handler) -> None:
        self._bus = bus
        self._queue = queue
        self._spec = queue.spec
        self._handler = handler
        self._room = asyncio.Semaphore(self._spec.prefetch)
        self._unsettled: set[_Settler] = set()
        self._handling: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        try:
            while True:
                await self._room.acquire()
                self._start(await self._queue.take())
        finally:
            for task in self._handling:
                task.cancel()
            if self._handling:
                await asyncio.wait(self._handling)
            for settler in list(self._unsettled):
                await settler.reject()

    def settled(self, settler: "_Settler") -> bool:
        """Note that a delivery is settled; False if it was before."""
        if settler not in self._unsettled:
            return False
        self._unsettled.discard(settler)
        self._room.release()
        return True

    def give_back(self, message: _Message) -> None:
        again = replace(message, given_back=message.given_back + 1)
        if again.given_back <= self._limit:
            self._queue.put(again, first=True)
        elif self._spec.is_durable and not self._spec.may_drop:
            self._bus.route(DEAD_LETTERS, again)

    def dead_letter(self, message: _Message, reason: str) -> None:
        self._bus.route(DEAD_LETTERS, replace(message, headers={**message.headers, REASON: reason[:1000]}))

    def _start(self, message: _Message) -> None:
        settler = _Settler(self, message)
        self._unsettled.add(settler)
        delivery = _as_delivery(message, settler, is_last=message.given_back >= self._limit)
        task = asyncio.create_task(handled(delivery, self._handler, log))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    @property
    def _limit(self) -> int:
        return self._spec.delivery_limit if self._spec.is_durable else 1


class _Settler:
    """A delivery of the twin. Settled once, it stays settled."""

    def __init__(self, consumer: _Consumer, message: _Message) -> None:
        self._consumer = consumer
        self._message = message

    async def ack(self) -> None:
        await asyncio.sleep(0)
        self._consumer.settled(self)

    async def reject(self) -> None:
        await asyncio.sleep(0)
        if self._consumer.settled(self):
            self._consumer.give_back(self._message)

    async def dead_letter(self, reason: str) -> None:
        await asyncio.sleep(0)
        if self._consumer.settled(self):
            self._consumer.dead_letter(self._message, reason)


def is_match(pattern: str, key: str) -> bool:
    """Whether a key matches a topic pattern: `*` is one word, `#` any number of words, none included."""
    return _matches(pattern.split("."), key.split(".") if key else [])


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


def _on_wire(message: Outgoing) -> _Message:
    wire = message.on_wire()
    return _Message(
        key=message.key,
        headers=wire.headers,
        content_type=wire.content_type,
        body=wire.body,
        message_id=message.id,
        user_id=message.user_id,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        at=asyncio.get_running_loop().time(),
    )


def _as_delivery(message: _Message, settler: _Settler, *, is_last: bool) -> Delivery:
    return Delivery(
        key=message.key,
        headers=message.headers,
        content_type=message.content_type,
        body=message.body,
        settler=settler,
        message_id=message.message_id,
        user_id=message.user_id,
        reply_to=message.reply_to,
        correlation_id=message.correlation_id,
        attempt=message.given_back + 1,
        is_last=is_last,
    )
