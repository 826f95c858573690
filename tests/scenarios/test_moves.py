"""Moves that do not go as wished: the guest is where it was, and nothing is left over."""

from collections.abc import AsyncIterator, Iterator

import pytest
from virtfleet_common.errors import Refused
from virtfleet_common.messages import (
    Command,
    ConfirmResize,
    DeleteInstance,
    ResizeInstance,
    RevertResize,
    StopInstance,
)
from virtfleet_common.records import ActionRecord, Flavor, Instance
from virtfleet_common.states import PowerState, VmState
from virtfleet_local.fleet import LocalFleet

from tests.conftest import brittle
from tests.world import World, everything_is_delivered, phase, polling

pytestmark = [pytest.mark.fleet]


@pytest.fixture(scope="module")
def four_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Four simulated hosts: a source, and three to be tried. A resize is confirmed by itself after ten seconds."""
    quick = {"VIRTFLEET_CLEANUP_INTERVAL": "1", "VIRTFLEET_CONFIRM_INTERVAL": "0.5"}
    with brittle(tmp_path_factory.mktemp("four"), 4, "test", **quick, VIRTFLEET_RESIZE_CONFIRM_WINDOW="10") as fleet:
        yield fleet


@pytest.fixture
async def four(four_hosts: LocalFleet) -> AsyncIterator[World]:
    """The four hosts as a program sees them."""
    async with World(four_hosts) as found:
        yield found


async def do(world: World, command: Command, instance_id: str) -> tuple[Instance, ActionRecord]:
    """An action to its end: the instance and the action's history after it."""
    async with world.story() as story:
        accepted = await world.client.command(command)
        await story.ends(accepted.action_id)
    await everything_is_delivered(world)
    return await world.instance(instance_id), await world.action(accepted.action_id)


async def books_are_clean(world: World) -> None:
    """No host owes a clean-up, and each holds exactly the instances that the record places on it."""
    async for _ in polling("the books to balance"):
        owed = await world.store.cleanups.find()
        hosts = [await world.host(name) for name in world.fleet.file.hosts]
        held = sorted((host.id, one.instance_id) for host in hosts for one in host.allocations)
        placed = [one for host in hosts for one in await world.store.instances.find_on_host(host.id)]
        if not owed and held == sorted((str(one.host), one.id) for one in placed):
            return


async def test_two_destinations_refuse_and_the_third_one_takes_the_guest(four: World) -> None:
    instance = await four.create()
    four.arm("prepare.middle", "raise*2")
    moved, action = await do(four, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    assert (moved.vm_state, moved.flavor.id) == (VmState.RESIZED, "2")
    tries = [(one.result, one.host) for one in action.events.values() if one.event == "compute_prep_resize"]
    assert sorted(result or "" for result, _ in tries) == ["Error", "Error", "Success"]
    assert len({host for _, host in tries} | {instance.host}) == 4
    await do(four, ConfirmResize(instance_id=instance.id), instance.id)
    await books_are_clean(four)


async def test_three_destinations_refuse_and_the_guest_stays_where_and_what_it_was(four: World) -> None:
    instance = await four.create()
    four.arm("prepare.middle", "raise*3")
    stayed, action = await do(four, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    assert (stayed.vm_state, stayed.host, stayed.flavor.id) == (VmState.ACTIVE, instance.host, "1")
    assert (stayed.move, stayed.new_flavor) == (None, None)
    assert action.result == "Error"
    assert stayed.fault is not None
    (migration,) = await four.store.migrations.find({"instance_id": instance.id})
    assert migration.status == "error"
    await books_are_clean(four)


async def test_no_host_is_large_enough_and_the_action_says_which_had_how_much(four: World) -> None:
    await four.store.flavors.replace(Flavor(id="huge", name="huge", vcpus=1, ram_mb=10_000_000, disk_gb=1))
    instance = await four.create()
    stayed, action = await do(four, ResizeInstance(instance_id=instance.id, flavor="huge"), instance.id)
    assert (stayed.vm_state, stayed.flavor.id, action.result) == (VmState.ACTIVE, "1", "Error")
    assert stayed.fault is not None
    assert stayed.fault.code == "no_valid_host"
    refused = {row["filter"]: row for row in stayed.fault.facts["explanation"]["refused"]}
    assert refused["not_enough_ram"]["count"] == 3
    assert refused["not_enough_ram"]["sample"][0]["needed"] == 10_000_000
    await books_are_clean(four)


async def test_a_stopped_guest_stays_stopped_all_the_way(four: World) -> None:
    instance = await four.create()
    await do(four, StopInstance(instance_id=instance.id), instance.id)
    moved, _ = await do(four, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    assert moved.vm_state is VmState.RESIZED
    confirmed, _ = await do(four, ConfirmResize(instance_id=instance.id), instance.id)
    assert (confirmed.vm_state, confirmed.flavor.id) == (VmState.STOPPED, "2")
    await books_are_clean(four)


async def test_a_revert_brings_back_host_flavor_and_claim(four: World) -> None:
    instance = await four.create()
    await do(four, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    back, _ = await do(four, RevertResize(instance_id=instance.id), instance.id)
    assert (back.vm_state, back.host, back.flavor.id) == (VmState.ACTIVE, instance.host, "1")
    assert (back.claim, back.epoch) == (instance.claim, instance.epoch + 2)
    await books_are_clean(four)


async def test_a_resize_that_nobody_decides_on_is_confirmed_by_itself(four: World) -> None:
    instance = await four.create()
    async with four.story() as story:
        await four.client.command(ResizeInstance(instance_id=instance.id, flavor="2"))
        await story.hears(lambda event: (event.data["action"], phase(event)) == ("confirmResize", "end"))
    assert (await four.instance(instance.id)).vm_state is VmState.ACTIVE
    await books_are_clean(four)


async def test_an_instance_deleted_while_its_resize_waits_leaves_nothing_on_either_host(four: World) -> None:
    instance = await four.create()
    await do(four, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    gone, _ = await do(four, DeleteInstance(instance_id=instance.id), instance.id)
    assert gone.vm_state is VmState.DELETED
    await books_are_clean(four)


@pytest.mark.parametrize(("flavor", "rule"), [("1", "flavor_differs"), ("nothing", "flavor_exists")])
async def test_a_resize_that_is_not_sound_changes_nothing(four: World, flavor: str, rule: str) -> None:
    instance = await four.create()
    with pytest.raises(Refused) as refusal:
        await four.client.command(ResizeInstance(instance_id=instance.id, flavor=flavor))
    assert refusal.value.rule == rule
    assert (await four.instance(instance.id)).rev == instance.rev


async def test_a_guest_whose_finish_failed_is_stopped_and_can_still_be_taken_back(four: World) -> None:
    instance = await four.create()
    four.arm("finish.middle", "raise")
    broken, _ = await do(four, ResizeInstance(instance_id=instance.id, flavor="2"), instance.id)
    assert (broken.vm_state, broken.host == instance.host) == (VmState.ERROR, False)
    stopped, action = await do(four, StopInstance(instance_id=instance.id), instance.id)
    assert (action.result, stopped.power_state) == ("Success", PowerState.SHUTDOWN)
    assert (stopped.vm_state, stopped.move) == (VmState.ERROR, broken.move)
    back, _ = await do(four, RevertResize(instance_id=instance.id), instance.id)
    assert (back.vm_state, back.host, back.flavor.id) == (VmState.ACTIVE, instance.host, "1")
    await books_are_clean(four)


async def test_there_is_nothing_to_confirm_or_to_revert(four: World) -> None:
    instance = await four.create()
    for command in (ConfirmResize(instance_id=instance.id), RevertResize(instance_id=instance.id)):
        with pytest.raises(Refused) as refusal:
            await four.client.command(command)
        assert refusal.value.code == "conflict"
    assert (await four.instance(instance.id)).rev == instance.rev
