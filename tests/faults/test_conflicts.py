"""G3: whoever asks first is obeyed, everybody else is told so; a question asked twice is answered alike."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import httpx
import pytest
from virtfleet_common.client import FleetClient
from virtfleet_common.errors import Conflict, NotFound
from virtfleet_common.messages import CommandAccepted, CreateInstance, DeleteInstance, RebootInstance, StopInstance
from virtfleet_common.states import PowerState, VmState

from tests.faults.mixture import crowd_of
from tests.witness import Chronicle, ended_once, everything_is_delivered, record_is_true
from tests.world import World

pytestmark = pytest.mark.fleet
MANY = 200


def stop(world: World, id_: str) -> Awaitable[CommandAccepted]:
    """Over AMQP."""
    return world.client.command(StopInstance(instance_id=id_), timeout=60)


async def sorted_out(answers: list[Any]) -> Counter[str]:
    """How the answers of both ways divide."""
    return Counter(_verdict(answer) for answer in answers)


def _verdict(answer: Any) -> str:
    match answer:
        case httpx.Response(status_code=202) | CommandAccepted():
            return "accepted"
        case httpx.Response(status_code=409):
            assert list(answer.json()) == ["conflictingRequest"]
            assert "while it is in" in answer.json()["conflictingRequest"]["message"]
            return "conflict"
        case Conflict(code="conflict"):
            return "conflict"
    raise AssertionError(answer)


@pytest.mark.parametrize("ways", [("http",), ("amqp",), ("http", "amqp")], ids="+".join)
async def test_of_two_hundred_that_want_to_stop_it_one_does(crowd: World, ways: tuple[str, ...]) -> None:
    (id_,) = await crowd_of(crowd, 1)
    chronicle = Chronicle(crowd.fleet)
    asking = {"http": lambda: crowd.act(id_, {"os-stop": None}), "amqp": lambda: stop(crowd, id_)}
    answers = await asyncio.gather(*(asking[ways[n % len(ways)]]() for n in range(MANY)), return_exceptions=True)
    assert await sorted_out(list(answers)) == {"accepted": 1, "conflict": MANY - 1}
    stopped, created = await crowd.store.actions.find(id_)
    assert (stopped.action, created.action) == ("stop", "create")
    await ended_once(crowd, chronicle, {stopped.id})
    assert (await crowd.instance(id_)).vm_state is VmState.STOPPED


async def test_a_command_sent_again_is_answered_alike_and_done_once(crowd: World) -> None:
    (id_,) = await crowd_of(crowd, 1)
    command = RebootInstance(instance_id=id_, type="HARD")
    first = await crowd.client.command(command, message_id=f"again-{id_}")
    await crowd.action(first.action_id)
    assert await crowd.client.command(command, message_id=f"again-{id_}") == first
    assert [one.action for one in await crowd.store.actions.find(id_)] == ["reboot", "create"]


async def test_a_command_sent_fifty_times_at_once_is_answered_alike_and_done_once(crowd: World) -> None:
    (id_,) = await crowd_of(crowd, 1)
    command = RebootInstance(instance_id=id_, type="HARD")
    answers = await asyncio.gather(*(crowd.client.command(command, message_id=f"all-{id_}") for _ in range(50)))
    assert len({answer.action_id for answer in answers}) == 1
    await crowd.action(answers[0].action_id)
    assert [one.action for one in await crowd.store.actions.find(id_)] == ["reboot", "create"]


async def test_a_refusal_is_kept_too(crowd: World) -> None:
    (id_,) = await crowd_of(crowd, 1)
    await crowd.action((await stop(crowd, id_)).action_id)
    await refused_to_stop(crowd, id_)
    started = await crowd.act(id_, {"os-start": None})
    await crowd.action(started.headers["x-openstack-request-id"])
    await refused_to_stop(crowd, id_)  # what would be accepted now, under another message id
    assert [one.action for one in await crowd.store.actions.find(id_)] == ["start", "stop", "create"]


async def refused_to_stop(world: World, id_: str) -> None:
    """The same message, the same answer."""
    with pytest.raises(Conflict, match="vm_state stopped") as refused:
        await world.client.command(StopInstance(instance_id=id_), message_id=f"refused-{id_}")
    assert refused.value.rule == "stop.vm_state"


async def test_the_same_message_id_of_another_user_is_another_message(crowd: World) -> None:
    (id_,) = await crowd_of(crowd, 1)
    first = await crowd.client.command(RebootInstance(instance_id=id_, type="HARD"), message_id=f"mine-{id_}")
    await crowd.action(first.action_id)
    async with FleetClient(crowd.fleet.file.other_member_amqp_url) as stranger:
        with pytest.raises(NotFound):
            await stranger.command(RebootInstance(instance_id=id_, type="HARD"), message_id=f"mine-{id_}")


async def test_a_hard_reboot_takes_over_a_soft_one(world: World) -> None:
    instance = await world.create()
    chronicle, before = Chronicle(world.fleet), set(world.guests(instance.id))
    world.arm("hypervisor.request_shutdown", "hang")
    soft = await world.client.command(RebootInstance(instance_id=instance.id, type="SOFT"))
    await world.taken("hypervisor.request_shutdown")
    hard = await world.client.command(RebootInstance(instance_id=instance.id, type="HARD"))
    assert (await world.action(hard.action_id)).result == "Success"
    assert (await world.action(soft.action_id)).result == "superseded"
    await ended_once(world, chronicle, {soft.action_id, hard.action_id})
    after = set(world.guests(instance.id))
    assert (len(after), after & before) == (1, set())
    await record_is_true(world)


async def test_a_second_delete_joins_the_first(crowd: World) -> None:
    (id_,) = await crowd_of(crowd, 1)
    chronicle = Chronicle(crowd.fleet)
    crowd.arm("hypervisor.destroy", "hang")
    first = await crowd.client.command(DeleteInstance(instance_id=id_))
    await crowd.taken("hypervisor.destroy")
    assert await crowd.client.command(DeleteInstance(instance_id=id_)) == first
    assert (await crowd.ask("DELETE", f"/v2.1/servers/{id_}")).status_code == 204
    crowd.release("hypervisor.destroy")
    assert (await crowd.action(first.action_id)).result == "Success"
    await ended_once(crowd, chronicle, {first.action_id})
    assert [one.action for one in await crowd.store.actions.find(id_)] == ["delete", "create"]


@pytest.mark.parametrize("command", [RebootInstance, StopInstance])
async def test_a_delete_takes_over_anything(world: World, command: type[RebootInstance | StopInstance]) -> None:
    instance = await world.create()
    chronicle = Chronicle(world.fleet)
    world.arm("hypervisor.request_shutdown", "hang")
    first = await world.client.command(command(instance_id=instance.id))
    await world.taken("hypervisor.request_shutdown")
    delete = await world.client.command(DeleteInstance(instance_id=instance.id))
    assert (await world.action(delete.action_id)).result == "Success"
    assert (await world.action(first.action_id)).result == "superseded"
    await ended_once(world, chronicle, {first.action_id, delete.action_id})
    gone = await world.instance(instance.id)
    assert (gone.vm_state, gone.power_state, world.guests(instance.id)) == (VmState.DELETED, PowerState.NOSTATE, {})
    await everything_is_delivered(world)
    await record_is_true(world)


async def test_a_delete_takes_over_a_create(world: World) -> None:
    chronicle = Chronicle(world.fleet)
    world.arm("hypervisor.observe", "hang")
    created = await world.client.command(CreateInstance(name="unborn", flavor="m1.tiny"))
    await world.taken("hypervisor.observe")
    delete = await world.client.command(DeleteInstance(instance_id=created.instance_ids[0]))
    assert (await world.action(delete.action_id)).result == "Success"
    world.release("hypervisor.observe")
    await ended_once(world, chronicle, {created.action_id, delete.action_id})
    assert (await world.action(created.action_id)).result == "superseded"
    await everything_is_delivered(world)
    await record_is_true(world)
