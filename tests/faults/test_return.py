"""A host comes back: what should run there runs, what should not is gone."""

import asyncio

import pytest
from virtfleet_common.messages import DeleteInstance, PauseInstance, StopInstance
from virtfleet_common.states import HostState, PowerState, VmState
from virtfleet_common.store.hosts import as_lost

from tests.scenarios.test_evacuate import act, force
from tests.witness import everything_is_delivered
from tests.world import World, polling

pytestmark = [pytest.mark.qemu, pytest.mark.fleet]


async def test_a_machine_that_was_off_for_a_moment_starts_what_the_record_says_is_running(pair: World) -> None:
    host = "host-1"
    await pair.store.hosts.set_fields("host-2", {"is_enabled": False})
    running, stopped, paused = [await pair.create(name) for name in ("running", "stopped", "paused")]
    await pair.store.hosts.set_fields("host-2", {"is_enabled": True})
    await act(pair, StopInstance(instance_id=stopped.id))
    await act(pair, PauseInstance(instance_id=paused.id))
    assert await asyncio.to_thread(pair.fleet.kill_host, host) == 2
    await asyncio.to_thread(pair.fleet.start_host, host)
    async for _ in polling("the guests to be what they should be"):
        now = await pair.instance(paused.id)
        if pair.places(running.id) == [host] and now.vm_state is VmState.STOPPED:
            break
    assert [pair.places(one.id) for one in (running, stopped, paused)] == [[host], [], []]
    now = await pair.instance(running.id)
    assert (now.vm_state, now.power_state, now.action) == (VmState.ACTIVE, PowerState.RUNNING, None)


async def test_a_guest_that_was_deleted_while_its_host_was_lost_is_gone_when_it_returns(pair: World) -> None:
    instance = await pair.create()
    host = str(instance.host)
    pair.fleet.kill_service(host)  # the guest runs on, and nobody can be asked
    await force(pair, host, is_down=True)
    await pair.client.command(DeleteInstance(instance_id=instance.id))
    assert (await pair.instance(instance.id)).vm_state is VmState.DELETED
    assert pair.places(instance.id) == [host]
    await force(pair, host, is_down=False)
    await asyncio.to_thread(pair.fleet.start_service, host, wait=False)
    async for _ in polling("the host to be back, and clean"):
        if (await pair.host(host)).state is HostState.UP and not await pair.store.cleanups.find():
            break
    await everything_is_delivered(pair)
    assert pair.places(instance.id) == []
    assert not list(pair.fleet.data.glob(f"hosts/*/instances/*{instance.id}*"))
    assert not (await pair.host(host)).allocations


async def test_an_agent_whose_registration_was_declared_void_comes_back_by_itself(pair: World) -> None:
    instance = await pair.create()
    guests, host = set(pair.guests(instance.id)), await pair.host(str(instance.host))
    assert host.last_seen is not None
    await pair.store.hosts.set_fields(host.id, as_lost(host.last_seen))
    async for _ in polling("the host to be registered anew"):
        now = await pair.host(host.id)
        if now.state is HostState.UP and now.boot_id not in {None, host.boot_id}:
            break
    assert set(pair.guests(instance.id)) == guests
