"""Evacuation by request: of guests that run, that are off, paused, or in error; where to, and where not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from virtfleet_common.messages import EvacuateInstance, PauseInstance, StopInstance
from virtfleet_common.records import Instance
from virtfleet_common.states import HostState, PowerState, VmState
from virtfleet_common.store import MigrationQuery

from tests.witness import everything_is_delivered
from tests.world import World, polling

pytestmark = pytest.mark.fleet
HOSTS = ["host-1", "host-2"]


@pytest.fixture
async def world(crowd: World) -> AsyncIterator[World]:
    """Two simulated hosts; whichever a test takes down is back at the end."""
    yield crowd
    for host in HOSTS:
        await force(crowd, host, is_down=False)
    async for _ in polling("every host to be back"):
        if all(host.state is HostState.UP for host in await crowd.store.hosts.find()):
            return


async def force(world: World, host: str, *, is_down: bool) -> None:
    """An admin says that a host is off, or that it is not; the second waits until it is clean."""
    uuid, version = (await world.host(host)).uuid, {"OpenStack-API-Version": "compute 2.53"}
    async for _ in polling(f"{host} to be let back"):
        answer = await world.ask("PUT", f"/v2.1/os-services/{uuid}", {"forced_down": is_down}, "admin", headers=version)
        if answer.status_code == 200:
            return
        assert (answer.status_code, is_down) == (400, False), answer.text


async def evacuate(world: World, instance: Instance, **asked: Any) -> Any:
    return await world.ask(
        "POST", f"/v2.1/servers/{instance.id}/action", {"evacuate": asked}, "admin",
        headers={"OpenStack-API-Version": "compute 2.68"},
    )  # fmt: skip


async def settled(world: World, instance: Instance) -> Instance:
    """The instance once nothing is at work on it."""
    async for _ in polling(f"{instance.id} to be idle"):
        now = await world.instance(instance.id)
        if now.action is None and now.move is None:
            return now
    raise AssertionError


async def act(world: World, command: Any) -> None:
    async with world.story() as story:
        accepted = await world.client.command(command)
        await story.ends(accepted.action_id)


def other(instance: Instance) -> str:
    return next(host for host in HOSTS if host != instance.host)


@pytest.mark.parametrize(
    ("vm_state", "power_state", "command"),
    [
        (VmState.ACTIVE, PowerState.RUNNING, None),
        (VmState.STOPPED, PowerState.SHUTDOWN, StopInstance),
        (VmState.PAUSED, PowerState.PAUSED, PauseInstance),
    ],
)
async def test_a_guest_is_elsewhere_what_it_was(
    world: World, vm_state: VmState, power_state: PowerState, command: Any
) -> None:
    before = await world.create()
    if command is not None:
        await act(world, command(instance_id=before.id))
    await force(world, str(before.host), is_down=True)
    assert (await evacuate(world, before)).status_code == 200
    now = await settled(world, before)
    assert (now.host, now.vm_state, now.power_state) == (other(before), vm_state, power_state), now.fault
    await everything_is_delivered(world)
    assert (await world.host(str(before.host))).allocations == []


async def test_a_guest_in_error_is_healed_by_it(world: World) -> None:
    before = await world.create()
    await world.act(before.id, {"os-resetState": {"state": "error"}}, "admin")
    await force(world, str(before.host), is_down=True)
    assert (await evacuate(world, before, host=other(before))).status_code == 200
    now = await settled(world, before)
    assert (now.host, now.vm_state) == (other(before), VmState.ACTIVE)


async def test_a_guest_that_finds_no_shelter_stays_where_it_was_and_can_be_evacuated_later(world: World) -> None:
    before = await world.create()
    await force(world, str(before.host), is_down=True)
    await world.store.hosts.set_fields(other(before), {"is_enabled": False})
    try:
        sent = await evacuate(world, before)
        now = await settled(world, before)
    finally:
        await world.store.hosts.set_fields(other(before), {"is_enabled": True})
    assert (now.host, now.vm_state, now.task_state) == (before.host, VmState.ACTIVE, None)
    record = await world.action(sent.headers["x-openstack-request-id"])
    assert (record.result, record.message) == ("Error", "No valid host was found.")
    assert record.explanation is not None
    await everything_is_delivered(world)
    (migration,) = await world.store.migrations.find_page(MigrationQuery(instance_id=before.id))
    assert (migration.type, migration.status) == ("evacuation", "error")
    async for _ in polling("the scheduler to see the other host"):
        assert (await evacuate(world, before)).status_code == 200
        if (await settled(world, before)).host == other(before):
            break


async def test_two_evacuations_of_one_instance_at_once_are_one(world: World) -> None:
    before = await world.create()
    await force(world, str(before.host), is_down=True)
    world.arm("select_shelter.middle", "hang")
    answers = await asyncio.gather(*(evacuate(world, before) for _ in range(10)))
    await world.taken("select_shelter.middle")
    world.release("select_shelter.middle")
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 9
    assert (await settled(world, before)).epoch == before.epoch + 1
    assert len(await world.store.migrations.find_page(MigrationQuery(instance_id=before.id))) == 1


async def test_a_host_that_is_up_is_not_evacuated(world: World) -> None:
    before = await world.create()
    answer = await evacuate(world, before)
    assert (answer.status_code, "is still in use" in answer.text) == (400, True)
    assert (await world.instance(before.id)).rev == before.rev


async def test_a_program_may_ask_for_it_only_as_an_admin(world: World) -> None:
    before = await world.create()
    await force(world, str(before.host), is_down=True)
    with pytest.raises(Exception, match="Policy doesn't allow evacuate"):
        await world.client.command(EvacuateInstance(instance_id=before.id))
    assert (await world.instance(before.id)).host == before.host
