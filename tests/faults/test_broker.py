"""G1 and G2: the broker, the database or any service goes away while actions are in flight, and every action ends."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from virtfleet_common.messages import CreateInstance, RebootInstance
from virtfleet_common.states import PowerState, VmState
from virtfleet_local.broker import Broker

from tests.faults.mixture import Planned, all_came_true, crowd_of, prepare, send_all, steps_done
from tests.witness import Chronicle, ended_once, everything_is_delivered, record_is_true
from tests.world import World, polling

pytestmark = pytest.mark.fleet
EACH = 10
STEPS = EACH * 6  # a create has two
EXECUTORS = ("scheduler", "host-1", "host-2")


@contextmanager
def frozen(world: World, services: tuple[str, ...] = EXECUTORS) -> Iterator[None]:
    """Nothing that is accepted meanwhile is executed."""
    for service in services:
        world.fleet.process(service).signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for service in services:
            world.fleet.process(service).signal(signal.SIGCONT)


CALAMITIES = {
    "restart": (Broker.stop, Broker.start),
    "crash": (Broker.kill, Broker.start),
    "wipe": (Broker.kill, Broker.wipe),  # it comes back with nothing: no queue, no exchange, no message
}


@pytest.mark.parametrize("calamity", CALAMITIES)
async def test_fifty_actions_end_although_the_broker_was_away(crowd: World, calamity: str) -> None:
    goes, comes = CALAMITIES[calamity]
    planned = await prepare(crowd, EACH)
    before, chronicle = await steps_done(crowd), Chronicle(crowd.fleet)
    with frozen(crowd):
        sent = await send_all(crowd, planned)
        await asyncio.to_thread(goes, crowd.fleet.broker)
    # The executors go on with what they had been given, and can tell nobody.
    await asyncio.to_thread(comes, crowd.fleet.broker)
    await ended_once(crowd, chronicle, set(sent))
    await all_came_true(crowd, sent)
    assert await steps_done(crowd) == before + STEPS, "a step ran twice"
    await everything_is_delivered(crowd)
    await record_is_true(crowd)


async def test_commands_sent_while_the_broker_is_wiped_are_accepted_once(crowd: World) -> None:
    planned = await prepare(crowd, EACH)
    before, chronicle = await steps_done(crowd), Chronicle(crowd.fleet)
    _, sent = await asyncio.gather(asyncio.to_thread(crowd.fleet.broker.wipe), send_all(crowd, planned))
    await ended_once(crowd, chronicle, set(sent))
    await all_came_true(crowd, sent)
    assert await steps_done(crowd) == before + STEPS, "a command was accepted twice, or a step ran twice"
    await record_is_true(crowd)


def restart_database(world: World) -> None:
    """The database ends in good order and comes back."""
    world.fleet.database.restart()


def kill_database(world: World) -> None:
    """The database dies and comes back with what it had confirmed."""
    world.fleet.database.kill()
    world.fleet.database.start()


def elect(world: World) -> None:
    """The primary resigns, and is elected again a second later."""
    world.fleet.database.step_down()


@pytest.mark.parametrize("calamity", [restart_database, kill_database, elect])
async def test_thirty_actions_end_although_the_database_was_away(
    simulation: World, calamity: Callable[[World], None]
) -> None:
    planned = await prepare(simulation, 6)
    chronicle = Chronicle(simulation.fleet)
    with frozen(simulation):
        sent = await send_all(simulation, planned[:15])
    # What was held back is being worked on, and as much comes in, when the database goes.
    _, more = await asyncio.gather(asyncio.to_thread(calamity, simulation), send_all(simulation, planned[15:]))
    sent = {**sent, **more}
    await ended_once(simulation, chronicle, set(sent))
    await all_came_true(simulation, sent)
    await everything_is_delivered(simulation)
    await record_is_true(simulation)


API_POINTS = ["api.after_commit", "api.after_send", "api.before_mark", "intake.before_keep", "intake.before_ack"]


@pytest.mark.parametrize("point", API_POINTS)
async def test_a_command_is_accepted_once_although_the_api_died(crowd: World, point: str) -> None:
    (id_,) = await crowd_of(crowd, 1)
    planned = [Planned(RebootInstance(instance_id=id_, type="HARD"), (VmState.ACTIVE, PowerState.RUNNING))]
    before, chronicle = await steps_done(crowd), Chronicle(crowd.fleet)
    crowd.arm(point)
    async with crowd.death("api"):
        sending = asyncio.create_task(send_all(crowd, planned))
    crowd.fleet.start_service("api", wait=False)
    sent = await sending
    await ended_once(crowd, chronicle, set(sent))
    await all_came_true(crowd, sent)
    assert await steps_done(crowd) == before + 1
    assert [one.action for one in await crowd.store.actions.find(id_)] == ["reboot", "create"]


@pytest.mark.parametrize("point", ["api.after_commit", "api.after_send", "api.before_mark"])
async def test_what_was_accepted_over_http_ends_although_the_api_died_before_it_answered(
    simulation: World, point: str
) -> None:
    (id_,) = await crowd_of(simulation, 1)
    chronicle = Chronicle(simulation.fleet)
    simulation.arm(point)
    async with simulation.death("api"):
        with pytest.raises(httpx.TransportError):
            await simulation.act(id_, {"reboot": {"type": "HARD"}})
    simulation.fleet.start_service("api")
    async for _ in polling("the action's record"):
        newest, *_ = await simulation.store.actions.find(id_)
        if newest.finish is not None and newest.action == "reboot":
            break
    assert newest.result == "Success"
    await ended_once(simulation, chronicle, {newest.id})
    assert (await simulation.act(id_, {"reboot": {"type": "HARD"}})).status_code == 202


@pytest.mark.parametrize("point", ["power-sync.after_send", "power-sync.before_mark"])
async def test_a_step_that_power_sync_died_of_sending_is_done_once(crowd: World, point: str) -> None:
    (id_,) = await crowd_of(crowd, 1)
    before, chronicle = await steps_done(crowd), Chronicle(crowd.fleet)
    crowd.arm("api.after_commit")  # so that it is power_sync's turn
    crowd.arm(point)
    planned = [Planned(RebootInstance(instance_id=id_, type="HARD"), (VmState.ACTIVE, PowerState.RUNNING))]
    async with crowd.death("power-sync"), crowd.death("api"):
        sending = asyncio.create_task(send_all(crowd, planned))
    for service in ("power-sync", "api"):
        crowd.fleet.start_service(service, wait=False)
    sent = await sending
    await ended_once(crowd, chronicle, set(sent))
    assert await steps_done(crowd) == before + 1


async def test_thirty_actions_end_although_every_service_was_killed_at_once(crowd: World) -> None:
    planned = await prepare(crowd, 6)
    chronicle = Chronicle(crowd.fleet)
    with frozen(crowd, EXECUTORS[1:]):
        sent = await send_all(crowd, planned)
    for service in crowd.fleet.services():
        crowd.fleet.kill_service(service.name)
    for service in crowd.fleet.services():
        crowd.fleet.start_service(service.name, wait=False)
    await ended_once(crowd, chronicle, set(sent))
    for action_id in sent:
        assert (await crowd.action(action_id)).result == "Success"
    await everything_is_delivered(crowd)
    await record_is_true(crowd)


async def test_a_fleet_whose_services_all_died_accepts_again(simulation: World) -> None:
    for service in simulation.fleet.services():
        simulation.fleet.kill_service(service.name)
    for service in simulation.fleet.services():
        simulation.fleet.start_service(service.name)
    accepted = await simulation.client.command(CreateInstance(name="after", flavor="m1.tiny"), timeout=30)
    assert (await simulation.action(accepted.action_id)).result == "Success"
