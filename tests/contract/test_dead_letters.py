"""What could not be handled is read, sent again when the cause is mended, or thrown away."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from virtfleet_common.bus import COMMANDS, Delivery, Outgoing, QueueSpec
from virtfleet_common.dead_letters import DeadLetters, Letter, run
from virtfleet_common.errors import BadRequest
from virtfleet_common.rabbit import RabbitBus

PROMPTLY = 30


@pytest.fixture
async def bus(amqp_url: str) -> AsyncIterator[RabbitBus]:
    bus = RabbitBus(amqp_url, name="letters")
    yield bus
    await bus.close()


async def a_letter(bus: RabbitBus, url: str, key: str) -> Letter:
    """A message of which its handler said that it can never be handled."""

    async def give_up(delivery: Delivery) -> None:
        await delivery.settler.dead_letter("the disk is gone")

    message = Outgoing(COMMANDS, key, "virtfleet.test", {"n": 1}, "test", mandatory=True)
    async with bus.consume(QueueSpec(f"give-up.{key}", [(COMMANDS, key)]), give_up):
        await bus.publish(message)
        async with asyncio.timeout(PROMPTLY):
            while True:
                for letter in await DeadLetters(url).read():
                    if letter.id == message.id:
                        return letter


async def test_a_letter_says_what_it_was_and_why_it_is_one(bus: RabbitBus, amqp_url: str) -> None:
    key = f"compute.{uuid4().hex}.create"
    letter = await a_letter(bus, amqp_url, key)
    assert (letter.key, letter.reason, letter.body) == (key, "the disk is gone", '{"n": 1}')
    assert [line for line in await run(amqp_url, "list") if letter.id in line]


async def test_a_letter_that_is_sent_again_arrives_as_it_first_did_and_is_no_letter_any_more(
    bus: RabbitBus, amqp_url: str
) -> None:
    key = f"compute.{uuid4().hex}.create"
    letter = await a_letter(bus, amqp_url, key)
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()

    async def take(delivery: Delivery) -> None:
        await arrived.put(delivery)
        await delivery.settler.ack()

    async with bus.consume(QueueSpec(f"give-up.{key}", [(COMMANDS, key)]), take):
        assert await run(amqp_url, "replay", [letter.id]) == [f"replay: {letter.id} {key}"]
        again = await asyncio.wait_for(arrived.get(), PROMPTLY)
    assert (again.message_id, again.event.get_data()) == (letter.id, {"n": 1})
    assert "x-virtfleet-reason" not in again.headers
    assert letter.id not in [left.id for left in await DeadLetters(amqp_url).read()]


async def test_a_program_s_command_is_for_its_sender_to_send_again(bus: RabbitBus, amqp_url: str) -> None:
    letter = await a_letter(bus, amqp_url, f"instance.{uuid4().hex}")
    with pytest.raises(BadRequest, match="program's command"):
        await run(amqp_url, "replay", [letter.id])
    assert letter in await DeadLetters(amqp_url).read()


async def test_a_letter_that_is_dropped_is_gone_and_the_others_stay(bus: RabbitBus, amqp_url: str) -> None:
    gone, kept = [await a_letter(bus, amqp_url, f"compute.{uuid4().hex}.create") for _ in range(2)]
    await run(amqp_url, "drop", [gone.id])
    left = [letter.id for letter in await DeadLetters(amqp_url).read()]
    assert (gone.id in left, kept.id in left) == (False, True)


async def test_a_letter_nobody_knows_is_an_error(bus: RabbitBus, amqp_url: str) -> None:
    await a_letter(bus, amqp_url, f"compute.{uuid4().hex}.create")
    with pytest.raises(BadRequest, match="There is no letter nonsense"):
        await run(amqp_url, "drop", ["nonsense"])
