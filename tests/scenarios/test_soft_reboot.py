"""A soft reboot is the guest's own doing, if it does it; a guest that ignores the button is rebooted all the same."""

import pytest
from virtfleet_common.messages import CreateInstance, RebootInstance
from virtfleet_common.records import Instance
from virtfleet_common.states import PowerState, VmState

from tests.witness import Chronicle, ended_once
from tests.world import World, polling

pytestmark = [pytest.mark.fleet, pytest.mark.qemu]


async def booted(world: World, image: str) -> Instance:
    """A guest whose own console says that it is ready."""
    accepted = await world.client.command(CreateInstance(name=image, flavor="m1.tiny", image=image))
    assert (await world.action(accepted.action_id)).result == "Success"
    await says(world, accepted.instance_ids[0], "ready", 1)
    return await world.instance(accepted.instance_ids[0])


async def says(world: World, instance_id: str, words: str, times: int) -> str:
    """What a guest's console says, once it says these words so often."""
    async for _ in polling(f"the guest to say {words!r} {times} times", every=0.2):
        answer = await world.act(instance_id, {"os-getConsoleOutput": {}})
        output: str = answer.json()["output"]
        if output.count(f"virtfleet-guest: {words}") >= times:
            return output
    raise AssertionError


async def test_a_guest_that_hears_the_button_reboots_itself(pair: World) -> None:
    instance = await booted(pair, "tiny")
    before, chronicle = set(pair.guests(instance.id)), Chronicle(pair.fleet)
    soft = await pair.client.command(RebootInstance(instance_id=instance.id, type="SOFT"))
    record = await pair.action(soft.action_id)
    steps = [event.event for event in record.events.values()]
    assert (record.result, steps) == ("Success", ["compute_reboot_instance"])
    console = await says(pair, instance.id, "ready", 2)
    assert console.index("power button") < console.index("power off") < console.rindex("virtfleet-guest: boot ")
    assert "power button ignored" not in console
    assert len({line for line in console.splitlines() if "virtfleet-guest: boot " in line}) == 2
    assert not set(pair.guests(instance.id)) & before
    await ended_once(pair, chronicle, {soft.action_id})
    after = await pair.instance(instance.id)
    assert (after.vm_state, after.power_state) == (VmState.ACTIVE, PowerState.RUNNING)


async def test_a_guest_that_ignores_the_button_is_rebooted_hard_and_the_record_says_why(pair: World) -> None:
    instance = await booted(pair, "tiny-deaf")
    before, chronicle = set(pair.guests(instance.id)), Chronicle(pair.fleet)
    soft = await pair.client.command(RebootInstance(instance_id=instance.id, type="SOFT"))
    record = await pair.action(soft.action_id)
    assert record.result == "Success"
    (told,) = [event for event in record.events.values() if event.event == "soft_reboot_fell_back"]
    assert told.details == "the guest did not shut down within 15 s"
    console = await says(pair, instance.id, "ready", 2)
    assert "power button ignored" in console, "it was asked"
    assert not set(pair.guests(instance.id)) & before
    await ended_once(pair, chronicle, {soft.action_id})
