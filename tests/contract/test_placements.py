"""The question that the facade asks a scheduler, and the answer's way back, over the bus."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from virtfleet_api.amqp_sources import BusPlacements
from virtfleet_common.bus import COMMANDS, DIRECT, Bus, Delivery, Outgoing, QueueSpec
from virtfleet_common.errors import BadRequest, Unroutable
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.messages import PLACEMENT_EXPLAIN, ExplainPlacement, PlacementExplained

QUESTION = ExplainPlacement(project_id="p", flavor="tiny")


@asynccontextmanager
async def a_scheduler(bus: Bus, answer: PlacementExplained) -> AsyncIterator[list[ExplainPlacement]]:
    """Somebody who answers every question alike; gives what was asked."""
    asked: list[ExplainPlacement] = []

    async def take(delivery: Delivery) -> None:
        asked.append(delivery.read(ExplainPlacement))
        reply_to = delivery.reply_to or ""
        await bus.publish(Outgoing(DIRECT, reply_to, "virtfleet.placement.explained", answer, "test"))
        await delivery.settler.ack()

    async with bus.consume(QueueSpec("explainer", [(COMMANDS, PLACEMENT_EXPLAIN)]), take):
        yield asked


async def test_a_scheduler_answers_whoever_asked() -> None:
    bus = MemoryBus()
    answer = PlacementExplained(hosts=["best"], explanations=[{"chosen": "best"}])
    async with a_scheduler(bus, answer) as asked:
        answers = await asyncio.gather(*(BusPlacements(bus).explain(QUESTION) for _ in range(3)))
    assert answers == [answer] * 3
    assert [one.flavor for one in asked] == ["tiny"] * 3


async def test_a_question_without_an_answer_is_the_askers_mistake() -> None:
    bus = MemoryBus()
    async with a_scheduler(bus, PlacementExplained(error="Flavor tiny could not be found.")):
        with pytest.raises(BadRequest, match="Flavor tiny could not be found"):
            await BusPlacements(bus).explain(QUESTION)


async def test_without_a_scheduler_the_question_fails_at_once() -> None:
    with pytest.raises(Unroutable):
        await BusPlacements(MemoryBus()).explain(QUESTION)
