"""What the record wants against what a guest does: restarted, stopped again, or let be; and guests nobody knows."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from virtfleet_common.beginning import SYSTEM
from virtfleet_common.client import FleetEvent
from virtfleet_common.messages import CreateInstance, StopInstance
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_common.store import Expect

from tests.spoken import Spoken
from tests.witness import Chronicle, ended_once
from tests.world import DEADLINE, World, phase, polling

pytestmark = pytest.mark.fleet
V, P, T = VmState, PowerState, TaskState
RESTART, ENFORCE = {"on_guest_poweroff": "restart"}, {"on_unexpected_running": "enforce"}


# Real guests, which power themselves off


async def a_guest_that_powers_itself_off(world: World, **more: Any) -> str:
    """Two seconds after it has booted, whenever it boots."""
    accepted = await world.client.command(CreateInstance(name="tired", flavor="m1.tiny", image="tiny-tired", **more))
    return accepted.instance_ids[0]


async def next_of(events: Any, key: str, besides: str = "") -> FleetEvent:
    """The next event of this kind; a copy of the one with the id `besides` is none."""
    async for event in events:
        if event.key.startswith(key) and event.id != besides:
            return event  # type: ignore[no-any-return]
    raise AssertionError(f"{key} was not told")


@pytest.mark.qemu
async def test_a_guest_that_powers_itself_off_is_stopped(pair: World) -> None:
    async with pair.client.subscribed("instance.power.*.*") as told:
        id_ = await a_guest_that_powers_itself_off(pair)
        event = await next_of(told, "instance.power.stopped")
    assert (event.data["instance_id"], event.data["after"]["vm_state"]) == (id_, V.STOPPED)
    stopped = await pair.instance(id_)
    assert (stopped.vm_state, stopped.power_state, stopped.task_state) == (V.STOPPED, P.SHUTDOWN, None)


@pytest.mark.qemu
async def test_a_guest_that_keeps_dying_is_restarted_then_put_off_and_stays_down_when_its_owner_stops_it(
    pair: World,
) -> None:
    chronicle = Chronicle(pair.fleet)
    async with pair.client.subscribed("instance.#") as told:
        id_ = await a_guest_that_powers_itself_off(pair, metadata=RESTART)
        died = await next_of(told, "instance.power.stopped")
        assert died.data["after"] == {"vm_state": V.ACTIVE, "task_state": None, "power_state": P.SHUTDOWN}
        started = await next_of(told, "instance.start.end")
        assert started.data["after"] == {"vm_state": V.ACTIVE, "task_state": None, "power_state": P.RUNNING}
        await next_of(told, "instance.power.stopped", besides=died.id)
    restart = await pair.action(started.data["request_id"])
    assert (restart.user_id, restart.action, restart.result) == (SYSTEM, "start", "Success")
    put_off = await pair.instance(id_)
    assert (put_off.vm_state, put_off.power_state, put_off.task_state) == (V.ACTIVE, P.SHUTDOWN, None)
    stop = await pair.client.command(StopInstance(instance_id=id_))
    assert (await pair.action(stop.action_id)).result == "Success"
    assert (await pair.instance(id_)).vm_state is V.STOPPED
    await ended_once(pair, chronicle, {restart.id, stop.action_id})


# A host that the test speaks for


async def test_a_stopped_guest_that_runs_is_stopped_again_where_that_is_enforced(host: Spoken) -> None:
    instance = await host.instance(vm_state=V.STOPPED, power_state=P.SHUTDOWN, metadata=ENFORCE)
    async with host.world.client.subscribed(f"instance.*.*.{instance.id}") as told:
        await host.listing({instance.id: P.RUNNING})
        events = [await anext(told) for _ in range(2)]
    assert {(event.data["action"], phase(event)) for event in events} == {("power", "running"), ("stop", "start")}
    found = await host.world.instance(instance.id)
    assert (found.vm_state, found.power_state, found.task_state) == (V.STOPPED, P.RUNNING, T.POWERING_OFF)
    assert found.action is not None
    assert (found.action.user_id, found.action.project_id) == (SYSTEM, instance.project_id)
    assert found.action.step.target == f"compute.{host.name}.stop"


async def test_a_restart_that_was_put_off_is_begun_by_a_later_heartbeat(host: Spoken) -> None:
    instance = await host.instance(metadata=RESTART)
    earlier = {"instance_id": instance.id, "action": "start", "user_id": SYSTEM, "start": instance.created_at}
    await host.world.store.actions.put("req-earlier", earlier)
    async with host.world.client.subscribed(f"instance.*.*.{instance.id}") as told:
        await host.delta(instance.id, P.SHUTOFF)
        assert phase(await anext(told)) == "stopped"
        await host.listing({instance.id: P.SHUTOFF})
        await host.is_heard()
        assert (await host.world.instance(instance.id)).action is None
        await host.world.store.actions.put("req-earlier", {"user_id": "somebody"})  # as if it was long ago
        await host.listing({instance.id: P.SHUTOFF})
        assert (await anext(told)).data["action"] == "start"
    assert (await host.world.instance(instance.id)).task_state is T.POWERING_ON


async def orphans(world: World) -> float:
    """What the metric says."""
    port = world.fleet.file.ports["power-sync"]
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE)).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("virtfleet_orphans "))


async def test_a_guest_that_nobody_knows_is_told_of_once_for_each_boot_and_never_touched(host: Spoken) -> None:
    orphan, at_first = str(uuid4()), await orphans(host.world)
    elsewhere = await host.instance(host="a host that says nothing")
    listing = {orphan: P.RUNNING, elsewhere.id: P.PAUSED}
    async with host.world.client.subscribed(f"host.{host.name}.orphan") as told:
        for _ in range(3):
            await host.listing(listing)
        await host.delta(orphan, P.SHUTOFF)
        await host.listing({**listing, orphan: P.SHUTOFF})
        await host.is_heard()
        assert await orphans(host.world) == at_first + 1
        host.boot = uuid4().hex
        await host.register()
        await host.listing(listing)
        events = [await anext(told) for _ in range(2)]
        assert [event.data["guest"]["instance_id"] for event in events] == [orphan, orphan], "the copy is no orphan"
        assert events[0].data["boot_id"] != events[1].data["boot_id"] == host.boot
        await host.listing({elsewhere.id: P.PAUSED})
        await host.is_heard()
    assert await orphans(host.world) == at_first
    unchanged = await host.world.instance(elsewhere.id)
    assert (unchanged.rev, unchanged.power_state) == (elsewhere.rev, P.RUNNING)
    await host.world.store.instances.transition(elsewhere.id, expect=Expect(), set={"host": host.name})


async def test_what_happened_while_power_sync_was_dead_is_on_record_when_it_is_back(host: Spoken) -> None:
    stopped, moved = await host.instance(), await host.instance()
    await host.listing({stopped.id: P.RUNNING, moved.id: P.RUNNING})
    await host.is_heard()
    fleet = host.world.fleet
    await asyncio.to_thread(fleet.kill_service, "power-sync")
    await host.world.store.instances.transition(moved.id, expect=Expect(), set={"power_state": P.SHUTDOWN})
    async with host.world.client.subscribed("instance.power.*.*") as told:
        await asyncio.to_thread(fleet.start_service, "power-sync")
        async for _ in polling("what is listed to be compared with the record"):
            await host.listing({stopped.id: P.SHUTOFF, moved.id: P.RUNNING})
            if (await host.world.instance(stopped.id)).vm_state is V.STOPPED:
                break
        events = {(await anext(told)).data["instance_id"] for _ in range(2)}
    assert events == {stopped.id, moved.id}
    assert (await host.world.instance(moved.id)).power_state is P.RUNNING


async def test_the_record_is_followed_again_after_the_database_was_away(host: Spoken) -> None:
    instance = await host.instance()
    await host.listing({instance.id: P.RUNNING})
    await host.is_heard()
    await asyncio.to_thread(host.world.fleet.database.kill)
    await asyncio.to_thread(host.world.fleet.database.start)
    changed = {"vm_state": V.STOPPED, "power_state": P.SHUTDOWN}
    await host.world.store.instances.transition(instance.id, expect=Expect(), set=changed)
    async for _ in polling("the change to be seen, though the listing is as before"):
        await host.listing({instance.id: P.RUNNING})
        if (await host.world.instance(instance.id)).vm_state is V.ACTIVE:
            break
