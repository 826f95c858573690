"""The client for programs against a real broker, as a user with no more rights than a program has; the intake of
commands is a handler of this suite."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from uuid import uuid4

import pytest
from structlog.testing import capture_logs
from virtfleet_common.bus import COMMANDS, DIRECT, EVENTS, Delivery, Outgoing, QueueSpec
from virtfleet_common.client import FleetClient
from virtfleet_common.errors import BusUnavailable, Conflict, NoValidHost, Refused, Unauthorized, Unroutable
from virtfleet_common.messages import (
    CommandAccepted,
    CommandRejected,
    RebootInstance,
    StartInstance,
)
from virtfleet_common.rabbit import RabbitBus
from virtfleet_local.broker import Broker

from tests.proxy import wire_to
from tests.world import polling

PROMPTLY = 20.0
REBOOT = RebootInstance(instance_id="i1", type="HARD")


@pytest.fixture
async def services(broker: Broker) -> AsyncIterator[RabbitBus]:
    """The bus as the services have it, with the exchanges that a program only uses."""
    bus = RabbitBus(broker.url, name="client-contract")
    await bus.publish(Outgoing(EVENTS, "hello", "virtfleet.hello", {}, "virtfleet/test"))
    yield bus
    await bus.close()


@pytest.fixture
async def fleet(services: RabbitBus, broker: Broker) -> AsyncIterator[FleetClient]:
    """A program's client."""
    async with FleetClient(broker.url_of("member")) as client:
        yield client


@asynccontextmanager
async def intake(
    services: RabbitBus, *answers: CommandAccepted | CommandRejected | None
) -> AsyncIterator[list[Delivery]]:
    """Answers commands in turn (None: not at all, the last one for ever) and keeps what it was sent."""
    taken: list[Delivery] = []

    async def answer(delivery: Delivery) -> None:
        reply = answers[min(len(taken), len(answers) - 1)]
        taken.append(delivery)
        await delivery.settler.ack()
        if reply is not None and delivery.reply_to:
            word = "accepted" if isinstance(reply, CommandAccepted) else "rejected"
            type_, to = f"virtfleet.command.{word}", delivery.reply_to
            asked = delivery.correlation_id
            await services.publish(Outgoing(DIRECT, to, type_, reply, "api", correlation_id=asked, mandatory=True))

    queue = QueueSpec(f"intake{uuid4().hex[:8]}", [(COMMANDS, "instance.#")], is_durable=False)
    async with services.consume(queue, answer):
        yield taken


def accepted(action_id: str = "req-1") -> CommandAccepted:
    return CommandAccepted(action_id=action_id, instance_ids=["i1"])


def an_event(key: str, number: int = 1) -> Outgoing:
    return Outgoing(
        EVENTS, key, "virtfleet.instance.reboot.start", {"number": number}, "virtfleet/test", id=f"e{number}"
    )


async def test_a_command_is_answered_with_its_action(fleet: FleetClient, services: RabbitBus) -> None:
    async with intake(services, accepted()) as taken:
        assert await fleet.command(REBOOT, message_id="m1") == accepted()
    assert taken[0].key == "instance.reboot"
    assert (taken[0].message_id, taken[0].user_id) == ("m1", "member")
    assert taken[0].read(RebootInstance) == REBOOT


async def test_commands_under_way_together_get_each_its_own_answer(fleet: FleetClient, services: RabbitBus) -> None:
    async with intake(services, *(accepted(f"req-{n}") for n in range(20))) as taken:
        answers = await asyncio.gather(*(fleet.command(REBOOT, message_id=f"m{n}") for n in range(20)))
    for number, delivery in enumerate(taken):
        assert answers[int(str(delivery.message_id)[1:])].action_id == f"req-{number}"


@pytest.mark.parametrize(
    ("code", "kind"), [("conflict", Conflict), ("no_valid_host", NoValidHost), ("of_a_newer_version", Refused)]
)
async def test_a_refusal_is_raised_as_the_class_that_refused(
    fleet: FleetClient, services: RabbitBus, code: str, kind: type[Refused]
) -> None:
    rejected = CommandRejected(code=code, rule="task_state", message="It is busy.", hint="Wait.")
    async with intake(services, rejected):
        with pytest.raises(Refused) as refused:
            await fleet.command(REBOOT)
    assert type(refused.value) is kind
    assert (refused.value.code, refused.value.rule, refused.value.hint) == (code, "task_state", "Wait.")
    assert refused.value.message == "It is busy."


async def test_a_command_that_nobody_takes_is_unroutable(fleet: FleetClient) -> None:
    with pytest.raises(Unroutable):
        await fleet.command(StartInstance(instance_id="i1"))


async def test_a_command_without_an_answer_fails_after_its_time(fleet: FleetClient, services: RabbitBus) -> None:
    async with intake(services, None):
        with pytest.raises(BusUnavailable, match=r"no answer to instance.reboot within 0.3 s"):
            await fleet.command(REBOOT, timeout=0.3)


async def test_a_wrong_password_is_refused(broker: Broker) -> None:
    with pytest.raises(Unauthorized):
        async with FleetClient(broker.url_of("member").replace("member:", "member:not-")):
            pass


async def test_events_that_match_arrive_in_order_from_the_subscription_on(
    fleet: FleetClient, services: RabbitBus
) -> None:
    await services.publish(an_event("instance.reboot.start.i1", 1))
    async with fleet.subscribed("instance.*.start.i1", "instance.*.end.i1") as events:
        for number, key in enumerate(("instance.reboot.start.i1", "instance.stop.start.i2", "instance.reboot.end.i1")):
            await services.publish(an_event(key, number + 2))
        async with asyncio.timeout(PROMPTLY):
            first, second = await anext(events), await anext(events)
    assert (first.key, first.id, first.data) == ("instance.reboot.start.i1", "e2", {"number": 2})
    assert (second.key, second.id) == ("instance.reboot.end.i1", "e4")
    assert first.type == "virtfleet.instance.reboot.start"
    assert first.time is not None
    assert first.time.tzinfo is not None


async def test_events_are_read_in_a_plain_loop(fleet: FleetClient, services: RabbitBus) -> None:
    key = f"instance.reboot.start.{uuid4()}"
    async with aclosing(fleet.events(key)) as events, asyncio.timeout(PROMPTLY):
        seen = asyncio.ensure_future(anext(events))
        while not seen.done():  # nobody says when the loop has subscribed
            await services.publish(an_event(key))
            await asyncio.wait({seen}, timeout=0.05)
    assert seen.result().key == key


async def test_a_command_outlives_the_broker_and_is_sent_again_under_its_id(
    fleet: FleetClient, services: RabbitBus, broker: Broker
) -> None:
    async with intake(services, None, accepted()) as taken:
        async with fleet.subscribed("instance.#") as events:
            command = asyncio.create_task(fleet.command(REBOOT, message_id="m1", timeout=60))
            while not taken:
                await asyncio.wait({command}, timeout=0.02)
            await asyncio.to_thread(broker.stop)
            with pytest.raises(BusUnavailable, match="events may have been missed"):
                await asyncio.wait_for(anext(events), PROMPTLY)
        await asyncio.to_thread(broker.start)
        # The intake may be later back than the client: then nobody takes the command, and the program asks again.
        try:
            answer = await command
        except Unroutable:
            answer = await _asked_again(fleet)
    assert answer == accepted()
    assert {delivery.message_id for delivery in taken} == {"m1"}


async def _asked_again(fleet: FleetClient) -> CommandAccepted:
    async with asyncio.timeout(PROMPTLY):
        async for _ in polling("somebody to take commands"):
            with suppress(Unroutable):
                return await fleet.command(REBOOT, message_id="m1")
    raise AssertionError


async def test_a_broker_that_falls_silent_cancels_nobody_who_waits_for_an_answer(
    services: RabbitBus, broker: Broker
) -> None:
    """aiormq cancels whatever waits on a connection that it gives up."""
    async with intake(services, accepted()) as taken:
        with wire_to(broker.url_of("member")) as (wire, url), capture_logs() as said:
            async with FleetClient(f"{url}?heartbeat=1") as client:
                await client.command(REBOOT)
                wire.cut()
                command = asyncio.create_task(client.command(REBOOT, timeout=60))
                async for _ in polling("the connection to be given up"):
                    if command.done() or any(one["event"] == "command.unanswered" for one in said):
                        break
                wire.mend()
                assert await command == accepted()
    assert len(taken) == 2
