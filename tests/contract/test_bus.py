"""What the bus promises, asked of the real one on RabbitMQ and of its twin in memory alike; then what only RabbitMQ can
show: a broker that restarts, forgets everything, or is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from virtfleet_common.bus import (
    COMMANDS,
    DEAD_LETTERS,
    DIRECT,
    EVENTS,
    REASON,
    Delivery,
    Outgoing,
    QueueSpec,
)
from virtfleet_common.errors import BadMessage, BusUnavailable, Unroutable
from virtfleet_common.memory_bus import MemoryBus, is_match
from virtfleet_common.messages import PerformStep, RebootInstance
from virtfleet_common.rabbit import RabbitBus, cancellable
from virtfleet_local.broker import Broker

from tests.proxy import wire_to
from tests.world import polling

PROMPTLY = 15.0
Inbox = asyncio.Queue[Delivery]
AnyBus = RabbitBus | MemoryBus


@pytest.fixture
async def rabbit(amqp_url: str) -> AsyncIterator[RabbitBus]:
    """The bus on the run's broker, its dead-letter queue empty."""
    async with on_rabbitmq(amqp_url) as bus:
        yield bus


@pytest.fixture(params=["memory", "rabbitmq"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[AnyBus]:
    """A bus whose dead-letter queue is empty; RabbitMQ is started for the first that needs it."""
    if request.param == "memory":
        yield MemoryBus()
        return
    async with on_rabbitmq(request.getfixturevalue("amqp_url")) as bus:
        yield bus


@asynccontextmanager
async def on_rabbitmq(amqp_url: str) -> AsyncIterator[RabbitBus]:
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        letters = await channel.declare_queue(DEAD_LETTERS, durable=True, arguments={"x-queue-type": "quorum"})
        await letters.purge()
    bus = RabbitBus(amqp_url, name="bus-contract", publish_timeout=3.0)
    yield bus
    await bus.close()


def a_queue(*keys: str, exchange: str = COMMANDS, **more: Any) -> QueueSpec:
    """A queue of this test's own; without keys it takes `<its name>.#`."""
    name = f"q{uuid4().hex[:8]}"
    return QueueSpec(name, [(exchange, key) for key in keys or (f"{name}.#",)], **more)


def a_step(key: str, **more: Any) -> Outgoing:
    body = PerformStep(instance_id="i1", action_id="req-1", step="start", seq=1)
    return Outgoing(COMMANDS, key, "virtfleet.step.start", body, "virtfleet/test", **more)


@asynccontextmanager
async def inbox_of(bus: AnyBus, queue: QueueSpec) -> AsyncIterator[Inbox]:
    """What arrives in a queue, acknowledged."""
    arrived: Inbox = asyncio.Queue()

    async def keep(delivery: Delivery) -> None:
        await delivery.settler.ack()
        arrived.put_nowait(delivery)

    async with bus.consume(queue, keep):
        yield arrived


def dead_letters(bus: AnyBus) -> Any:
    return inbox_of(bus, QueueSpec("virtfleet.dead-letters.reader", [(DEAD_LETTERS, "#")], is_durable=False))


async def next_of(arrived: Inbox) -> Delivery:
    async with asyncio.timeout(PROMPTLY):
        return await arrived.get()


# Publishing and consuming


async def test_a_message_arrives_as_a_cloud_event_in_binary_mode(bus: AnyBus) -> None:
    queue = a_queue()
    sent = a_step(
        f"{queue.name}.start", id="m1", subject="i1", trace_id="a" * 32, reply_to="q9", correlation_id="c9",
    )  # fmt: skip
    async with inbox_of(bus, queue) as arrived:
        await bus.publish(sent)
        delivery = await next_of(arrived)
    assert (delivery.key, delivery.message_id) == (f"{queue.name}.start", "m1")
    assert (delivery.reply_to, delivery.correlation_id) == ("q9", "c9")
    assert delivery.content_type == "application/json"
    plain = {name: value for name, value in delivery.headers.items() if name not in ("ce-time", "ce-traceparent")}
    assert plain == {
        "ce-specversion": "1.0", "ce-id": "m1", "ce-source": "virtfleet/test", "ce-type": "virtfleet.step.start",
        "ce-subject": "i1",
    }  # fmt: skip
    assert delivery.trace_id == "a" * 32
    assert delivery.event.get_type() == "virtfleet.step.start"
    assert delivery.read(PerformStep) == sent.data
    assert (delivery.attempt, delivery.is_last) == (1, False)


async def test_a_mandatory_message_that_no_queue_takes_is_unroutable(bus: AnyBus) -> None:
    with pytest.raises(Unroutable, match="no queue takes nowhere") as lost:
        await bus.publish(a_step(f"nowhere.{uuid4()}", mandatory=True))
    assert lost.value.retryable


async def test_a_message_that_is_not_mandatory_may_find_no_queue(bus: AnyBus) -> None:
    await bus.publish(a_step(f"nowhere.{uuid4()}"))


async def test_many_publish_at_once_and_each_learns_the_fate_of_its_own(bus: AnyBus) -> None:
    queue = a_queue()
    async with inbox_of(bus, queue) as arrived:
        keys = [f"{queue.name}.{number}" if number % 2 else f"nowhere.{uuid4()}" for number in range(100)]
        sent = (bus.publish(a_step(key, mandatory=True)) for key in keys)
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        assert [isinstance(one, Unroutable) for one in outcomes] == [number % 2 == 0 for number in range(100)]
        assert {(await next_of(arrived)).key for _ in range(50)} == {key for key in keys if key.startswith(queue.name)}


async def test_a_reply_goes_straight_to_the_queue_it_names(bus: AnyBus) -> None:
    queue = a_queue(is_durable=False)
    async with inbox_of(bus, queue) as arrived:
        await bus.publish(
            Outgoing(DIRECT, queue.name, "virtfleet.reply", {"ok": True}, "virtfleet/test", mandatory=True)
        )
        assert (await next_of(arrived)).event.get_data() == {"ok": True}


async def test_every_queue_that_takes_the_key_gets_a_copy(bus: AnyBus) -> None:
    key = f"instance.reboot.start.{uuid4()}"
    one, all_, other = a_queue(key, exchange=EVENTS), a_queue("instance.#", exchange=EVENTS), a_queue(key)
    async with inbox_of(bus, one) as first, inbox_of(bus, all_) as second, inbox_of(bus, other) as third:
        await bus.publish(Outgoing(EVENTS, key, "virtfleet.instance.reboot.start", {}, "virtfleet/test"))
        assert (await next_of(first)).key == (await next_of(second)).key == key
        assert third.empty()


async def test_consumers_of_one_queue_share_its_messages(bus: AnyBus) -> None:
    queue = a_queue(prefetch=1)
    each_has_one = asyncio.Barrier(2)
    arrived: Inbox = asyncio.Queue()

    async def wait_for_the_other(delivery: Delivery) -> None:
        await each_has_one.wait()
        await delivery.settler.ack()
        arrived.put_nowait(delivery)

    async with bus.consume(queue, wait_for_the_other), bus.consume(queue, wait_for_the_other):
        for number in range(20):
            await bus.publish(a_step(f"{queue.name}.{number}", mandatory=True))
        keys = [(await next_of(arrived)).key for _ in range(20)]
    assert sorted(keys) == sorted(f"{queue.name}.{number}" for number in range(20))


async def test_what_comes_while_nobody_consumes_a_durable_queue_waits_in_it(bus: AnyBus) -> None:
    queue = a_queue()
    async with inbox_of(bus, queue):
        pass
    await bus.publish(a_step(f"{queue.name}.late", mandatory=True))
    async with inbox_of(bus, queue) as arrived:
        assert (await next_of(arrived)).key == f"{queue.name}.late"


async def test_a_temporary_queue_goes_with_its_consumer(bus: AnyBus) -> None:
    queue = a_queue(is_durable=False)
    async with inbox_of(bus, queue) as arrived:
        await bus.publish(a_step(f"{queue.name}.a", mandatory=True))
        await next_of(arrived)
    with pytest.raises(Unroutable):
        await bus.publish(a_step(f"{queue.name}.b", mandatory=True))


async def test_a_queue_of_limited_length_drops_its_oldest(bus: AnyBus) -> None:
    queue = a_queue(max_length=2)
    async with inbox_of(bus, queue):
        pass
    for number in range(5):
        await bus.publish(a_step(f"{queue.name}.{number}", mandatory=True))
    async with inbox_of(bus, queue) as arrived, dead_letters(bus) as letters:
        assert [(await next_of(arrived)).key for _ in range(2)] == [f"{queue.name}.3", f"{queue.name}.4"]
        assert letters.empty()


async def test_a_message_older_than_its_queue_allows_is_dropped(bus: AnyBus) -> None:
    queue = a_queue(ttl=0.2)
    async with inbox_of(bus, queue):
        pass
    await bus.publish(a_step(f"{queue.name}.old", mandatory=True))
    await asyncio.sleep(0.4)  # the time that is the matter of this test
    async with inbox_of(bus, queue) as arrived:
        await bus.publish(a_step(f"{queue.name}.new", mandatory=True))
        assert (await next_of(arrived)).key == f"{queue.name}.new"


# Handling


async def test_prefetch_bounds_what_is_handled_at_once(bus: AnyBus) -> None:
    queue = a_queue(prefetch=3)
    started: asyncio.Queue[Delivery] = asyncio.Queue()
    go_on = asyncio.Semaphore(0)

    async def hold(delivery: Delivery) -> None:
        started.put_nowait(delivery)
        await go_on.acquire()
        await delivery.settler.ack()

    async with bus.consume(queue, hold):
        for number in range(5):
            await bus.publish(a_step(f"{queue.name}.{number}", mandatory=True))
        for _ in range(3):
            await next_of(started)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(started.get(), 0.3)
        go_on.release()
        await next_of(started)
        assert started.empty()
        for _ in range(4):
            go_on.release()
        await next_of(started)


async def test_a_handler_that_has_acknowledged_makes_room_for_the_next(bus: AnyBus) -> None:
    queue = a_queue(prefetch=1)
    both = asyncio.Barrier(3)

    async def work(delivery: Delivery) -> None:
        await delivery.settler.ack()
        await both.wait()

    async with bus.consume(queue, work):
        for number in range(2):
            await bus.publish(a_step(f"{queue.name}.{number}", mandatory=True))
        async with asyncio.timeout(PROMPTLY):
            await both.wait()


async def test_a_handler_that_fails_gets_its_message_again(bus: AnyBus) -> None:
    queue = a_queue()
    attempts: asyncio.Queue[int] = asyncio.Queue()

    async def fail_once(delivery: Delivery) -> None:
        attempts.put_nowait(delivery.attempt)
        if delivery.attempt == 1:
            raise RuntimeError("the database is away")
        await delivery.settler.ack()

    async with bus.consume(queue, fail_once):
        await bus.publish(a_step(f"{queue.name}.a", mandatory=True))
        async with asyncio.timeout(PROMPTLY):
            assert [await attempts.get(), await attempts.get()] == [1, 2]


async def test_a_message_that_always_fails_ends_as_a_dead_letter_that_says_why(bus: AnyBus) -> None:
    queue = a_queue(delivery_limit=1)
    seen: list[tuple[int, bool]] = []

    async def fail(delivery: Delivery) -> None:
        seen.append((delivery.attempt, delivery.is_last))
        raise RuntimeError("no such disk")

    async with dead_letters(bus) as letters, bus.consume(queue, fail):
        await bus.publish(a_step(f"{queue.name}.a", mandatory=True, reply_to="q9", correlation_id="c9"))
        letter = await next_of(letters)
    assert seen == [(1, False), (2, True)]
    assert letter.key == f"{queue.name}.a"
    assert letter.headers[REASON] == "failed 2 times, at last with RuntimeError('no such disk')"
    assert (letter.reply_to, letter.correlation_id) == ("q9", "c9")
    assert letter.read(PerformStep).action_id == "req-1"


async def test_a_message_given_back_past_its_limit_is_dead_lettered_even_if_no_handler_lives_to_say_why(
    bus: AnyBus,
) -> None:
    queue = a_queue(delivery_limit=1)

    attempts: list[int] = []

    async def give_back(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        await delivery.settler.reject()

    async with dead_letters(bus) as letters, bus.consume(queue, give_back):
        await bus.publish(a_step(f"{queue.name}.a", mandatory=True))
        letter = await next_of(letters)
    assert letter.read(PerformStep).action_id == "req-1"
    assert REASON not in letter.headers
    assert attempts == [1, 2]


async def test_a_bad_message_is_dead_lettered_at_once_with_its_reason_and_can_be_read(bus: AnyBus) -> None:
    queue = a_queue()

    async def read(delivery: Delivery) -> None:
        delivery.read(RebootInstance)

    async with dead_letters(bus) as letters, bus.consume(queue, read):
        bad = Outgoing(
            COMMANDS, f"{queue.name}.a", "virtfleet.x", {"instance_id": "i1", "kind": "HARD"}, "virtfleet/test"
        )
        await bus.publish(bad)
        letter = await next_of(letters)
    assert letter.headers[REASON] == "data is not a RebootInstance: kind: Extra inputs are not permitted"
    assert letter.event.get_data() == {"instance_id": "i1", "kind": "HARD"}
    assert letter.event.get_id() == bad.id


async def test_leaving_a_consumer_cancels_its_handlers_and_their_messages_come_again(bus: AnyBus) -> None:
    queue = a_queue()
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(_: Delivery) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with bus.consume(queue, hang):
        await bus.publish(a_step(f"{queue.name}.a", mandatory=True))
        async with asyncio.timeout(PROMPTLY):
            await started.wait()
    assert cancelled.is_set()
    async with inbox_of(bus, queue) as arrived:
        assert (await next_of(arrived)).attempt == 2


async def test_settling_twice_does_nothing_the_second_time(bus: AnyBus) -> None:
    queue = a_queue()
    handled: asyncio.Queue[str] = asyncio.Queue()

    async def settle_twice(delivery: Delivery) -> None:
        await delivery.settler.ack()
        await delivery.settler.reject()
        handled.put_nowait(delivery.key)

    async with bus.consume(queue, settle_twice):
        for name in ("a", "b"):
            await bus.publish(a_step(f"{queue.name}.{name}", mandatory=True))
            async with asyncio.timeout(PROMPTLY):
                assert await handled.get() == f"{queue.name}.{name}"


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("a.b", "a.b", True), ("a.b", "a", False), ("a", "a.b", False), ("#", "a.b.c", True), ("#", "", True),
        ("*", "a", True), ("*", "a.b", False), ("a.*", "a", False), ("a.#", "a", True), ("a.#", "a.b.c", True),
        ("#.c", "a.b.c", True), ("#.c", "c", True), ("a.#.c", "a.c", True), ("a.*.c", "a.b.c", True),
        ("a.#.b.#", "a.x.b.y", True), ("a.#.b.#", "a.x.y", False),
    ],
)  # fmt: skip
async def test_topics_match_word_by_word(bus: AnyBus, pattern: str, key: str, expected: bool) -> None:
    assert is_match(pattern, key) is expected
    queue = a_queue(f"{pattern}.x9", exchange=EVENTS, is_durable=False)
    message = Outgoing(EVENTS, f"{key}.x9".lstrip("."), "virtfleet.x", {}, "virtfleet/test", mandatory=True)
    async with inbox_of(bus, queue):
        try:
            await bus.publish(message)
            is_taken = True
        except Unroutable:
            is_taken = False
    assert is_taken is expected


# RabbitMQ alone


async def test_a_message_that_is_no_cloud_event_is_a_bad_message(rabbit: RabbitBus, amqp_url: str) -> None:
    queue = a_queue()

    async def read(delivery: Delivery) -> None:
        delivery.read(PerformStep)

    async with dead_letters(rabbit) as letters, rabbit.consume(queue, read):
        async with await aio_pika.connect(amqp_url) as connection:
            commands = await (await connection.channel()).get_exchange(COMMANDS)
            await commands.publish(aio_pika.Message(b"\xff{", headers={"x-delivery-count": "many"}), f"{queue.name}.a")
        letter = await next_of(letters)
    assert str(letter.headers[REASON]).startswith("not a CloudEvent in binary mode")
    assert letter.body == b"\xff{"
    with pytest.raises(BadMessage):
        _ = letter.event


async def test_a_queue_declared_otherwise_by_an_earlier_version_is_used_as_it_is(rabbit: RabbitBus) -> None:
    queue = a_queue(delivery_limit=5)
    async with inbox_of(rabbit, queue):
        pass
    changed = QueueSpec(queue.name, queue.bindings, delivery_limit=7)
    async with inbox_of(rabbit, changed) as arrived:
        assert rabbit.is_connected
        await rabbit.publish(a_step(f"{queue.name}.a", mandatory=True))
        await next_of(arrived)


async def test_a_consumer_whose_queue_is_deleted_declares_it_again(rabbit: RabbitBus, amqp_url: str) -> None:
    queue = a_queue()
    async with inbox_of(rabbit, queue) as arrived:
        async with await aio_pika.connect(amqp_url) as connection:
            channel = await connection.channel()
            await channel.queue_delete(queue.name)
            await channel.exchange_delete(COMMANDS)
        await until_published(rabbit, a_step(f"{queue.name}.a", mandatory=True))
        assert (await next_of(arrived)).key == f"{queue.name}.a"


async def test_a_rebuilt_bus_publishes_and_consumes_as_before(rabbit: RabbitBus) -> None:
    queue = a_queue()
    async with inbox_of(rabbit, queue) as arrived:
        await rabbit.publish(a_step(f"{queue.name}.a", mandatory=True))
        await next_of(arrived)
        await rabbit.rebuild()
        await rabbit.publish(a_step(f"{queue.name}.b", mandatory=True))
        assert (await next_of(arrived)).key == f"{queue.name}.b"
        assert rabbit.is_connected


async def test_a_broker_that_is_away_is_unavailable_and_a_step_under_way_goes_on_until_it_is_back(
    rabbit: RabbitBus, broker: Broker
) -> None:
    queue, temporary = a_queue(), a_queue(is_durable=False)
    started, go_on, finished = asyncio.Event(), asyncio.Event(), asyncio.Event()
    arrived: Inbox = asyncio.Queue()

    async def work(delivery: Delivery) -> None:
        if delivery.key.endswith("long") and delivery.attempt == 1:
            started.set()
            await go_on.wait()
            await delivery.settler.ack()
            finished.set()
        else:
            await delivery.settler.ack()
            arrived.put_nowait(delivery)

    async with rabbit.consume(queue, work), inbox_of(rabbit, temporary) as replies:
        await rabbit.publish(a_step(f"{queue.name}.long", mandatory=True))
        await asyncio.wait_for(started.wait(), PROMPTLY)

        await asyncio.to_thread(broker.stop)
        with pytest.raises(BusUnavailable):
            await rabbit.publish(a_step(f"{queue.name}.lost", mandatory=True))
        assert not rabbit.is_connected
        go_on.set()
        await asyncio.wait_for(finished.wait(), PROMPTLY)

        await asyncio.to_thread(broker.start)
        again = await next_of(arrived)
        assert (again.key, again.attempt) == (f"{queue.name}.long", 2)
        await until_published(rabbit, a_step(f"{queue.name}.after", mandatory=True))
        assert (await next_of(arrived)).key == f"{queue.name}.after"
        await until_published(rabbit, a_step(f"{temporary.name}.reply", mandatory=True))
        assert (await next_of(replies)).key == f"{temporary.name}.reply"


async def test_a_broker_that_lost_everything_gets_its_topology_again(rabbit: RabbitBus, broker: Broker) -> None:
    queue = a_queue()

    async def refuse(_: Delivery) -> None:
        raise BadMessage("unreadable")

    async with inbox_of(rabbit, queue) as arrived, rabbit.consume(a_queue("poison"), refuse):
        await asyncio.to_thread(broker.wipe)
        await until_published(rabbit, a_step(f"{queue.name}.a", mandatory=True))
        assert (await next_of(arrived)).key == f"{queue.name}.a"
        async with dead_letters(rabbit) as letters:
            await until_published(rabbit, a_step("poison", mandatory=True))
            assert (await next_of(letters)).headers[REASON] == "unreadable"
        assert rabbit.is_connected


async def until_published(bus: RabbitBus, message: Outgoing) -> None:
    """Publish as `power_sync` does: again and again until the broker and its queue are there."""
    async with asyncio.timeout(PROMPTLY):
        async for _ in polling("the broker to take a message"):
            with suppress(BusUnavailable):
                await bus.publish(message)
                return


async def test_a_broker_that_falls_silent_is_away_for_who_publishes_and_cancels_nobody(amqp_url: str) -> None:
    """aiormq cancels whatever waits on a connection that it gives up."""
    queue = a_queue()
    with wire_to(amqp_url) as (wire, url):
        bus = RabbitBus(f"{url}?heartbeat=1", name="bus-contract", publish_timeout=60.0)
        async with inbox_of(bus, queue) as arrived:
            await bus.publish(a_step(f"{queue.name}.before", mandatory=True))
            assert (await next_of(arrived)).key == f"{queue.name}.before"
            wire.cut()
            sent = (bus.publish(a_step(f"{queue.name}.lost")) for _ in range(3))
            outcomes = await asyncio.gather(*sent, return_exceptions=True)
            assert [type(one) for one in outcomes] == [BusUnavailable] * 3
            wire.mend()
            await until_published(bus, a_step(f"{queue.name}.after", mandatory=True))
            async with asyncio.timeout(PROMPTLY):
                while (await arrived.get()).key != f"{queue.name}.after":
                    pass
        await bus.close()


async def test_a_timeout_within_is_still_one() -> None:
    with pytest.raises(TimeoutError), cancellable():
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def test_a_cancellation_that_aiormq_replaces_goes_through() -> None:
    begun = asyncio.Event()

    async def replaced() -> None:
        with cancellable():
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                raise ConnectionError from error

    waiting = asyncio.create_task(replaced())
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
