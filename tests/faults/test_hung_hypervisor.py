"""A libvirt call that never returns costs the action that made it, and nobody else anything."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from virtfleet_common.client import FleetEvent
from virtfleet_common.messages import CommandAccepted, Heartbeat, RebootInstance
from virtfleet_common.states import VmState

from tests.faults.mixture import crowd_of
from tests.witness import Chronicle, ended_once, record_is_true
from tests.world import World, polling

pytestmark = pytest.mark.fleet
WORKERS = 2


async def on_host(world: World, host: str, count: int) -> Sequence[str]:
    """So many active instances on a host; the scheduler may put more of them on the other one."""
    found: list[str] = []
    async for _ in polling(f"{count} instances on {host}"):
        ids = await crowd_of(world, count)
        found += [id_ for id_ in ids if (await world.instance(id_)).host == host]
        if len(found) >= count:
            break
    return found[:count]


async def hang(world: World, instance_id: str) -> CommandAccepted:
    """Have the hypervisor hang in the middle of a hard reboot of this instance."""
    world.arm("hypervisor.destroy", "hang")
    accepted = await world.client.command(RebootInstance(instance_id=instance_id, type="HARD"))
    await world.taken("hypervisor.destroy")
    return accepted


@asynccontextmanager
async def beats_of(world: World, host: str) -> AsyncIterator[AsyncIterator[Heartbeat]]:
    """The heartbeats of a host from now on."""
    async with world.client.subscribed(f"host.{host}.heartbeat") as events:
        yield _read(events)


async def _read(events: AsyncIterator[FleetEvent]) -> AsyncIterator[Heartbeat]:
    async for event in events:
        yield Heartbeat.model_validate(event.data)


async def test_a_hung_call_stalls_neither_heartbeats_nor_other_instances(simulation: World) -> None:
    stuck, *others = await on_host(simulation, "host-1", 4)
    chronicle = Chronicle(simulation.fleet)
    async with beats_of(simulation, "host-1") as beats:
        hung = await hang(simulation, stuck)
        commands = [RebootInstance(instance_id=id_, type="HARD") for id_ in others]
        accepted = await asyncio.gather(*(simulation.client.command(command) for command in commands))
        for one in accepted:
            assert (await simulation.action(one.action_id)).result == "Success"
        assert (await simulation.instance(stuck)).task_state is not None, "the others did not overtake it"
        heard = [await anext(beats), await anext(beats)]
        assert all(beat.is_responsive and beat.guests is not None for beat in heard)
    record = await simulation.action(hung.action_id)
    assert record.result == "Error"
    assert "destroy: no answer within 6 s" in (record.message or "")
    instance = await simulation.instance(stuck)
    assert (instance.vm_state, instance.task_state) == (VmState.ACTIVE, None), "the guest runs, whatever failed"
    assert instance.fault is not None
    assert instance.fault.code == "hypervisor_timeout"
    await ended_once(simulation, chronicle, {hung.action_id, *(one.action_id for one in accepted)})
    simulation.release("hypervisor.destroy")
    await record_is_true(simulation)


async def test_a_host_all_of_whose_workers_hang_is_avoided_until_they_are_free(simulation: World) -> None:
    stuck = await on_host(simulation, "host-1", WORKERS)
    async with beats_of(simulation, "host-1") as beats:
        for accepted in [await hang(simulation, id_) for id_ in stuck]:
            record = await simulation.action(accepted.action_id)
            assert (record.result, "no answer" in (record.message or "")) == ("Error", True)
        assert (await _until(beats, is_responsive=False)).guests is not None, "the listing has a thread of its own"
        async for _ in polling("the record of the host"):
            if not (await simulation.host("host-1")).is_responsive:
                break
        ids = await crowd_of(simulation, 6)
        assert {(await simulation.instance(id_)).host for id_ in ids} == {"host-2"}
        simulation.release("hypervisor.destroy")
        await _until(beats, is_responsive=True)
    async for _ in polling("the record of the host"):
        if (await simulation.host("host-1")).is_responsive:
            break
    await record_is_true(simulation)
    ids = await crowd_of(simulation, 4)
    assert "host-1" in {(await simulation.instance(id_)).host for id_ in ids}


async def _until(beats: AsyncIterator[Heartbeat], *, is_responsive: bool) -> Heartbeat:
    async with asyncio.timeout(30):
        async for beat in beats:
            if beat.is_responsive is is_responsive:
                return beat
    raise AssertionError
