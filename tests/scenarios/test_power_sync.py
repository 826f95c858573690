"""G6: what happens to a guest behind our back is soon on record; what was seen before is not held against it."""

import asyncio
from itertools import count
from typing import Any

import pytest
from virtfleet_common.states import PowerState, VmState
from virtfleet_local.fleet import DATABASE_NAME

from tests.spoken import Spoken
from tests.world import DEADLINE, World, polling

pytestmark = pytest.mark.fleet
V, P = VmState, PowerState


@pytest.mark.qemu
async def test_a_guest_that_dies_is_stopped_by_the_news_of_it(pair: World) -> None:
    instance = await pair.create()
    ((_, process),) = pair.guests(instance.id).items()
    news = []
    async with pair.client.subscribed(f"instance.power.*.{instance.id}", "host.*.delta") as told:
        process.terminate()
        async with asyncio.timeout(DEADLINE):
            while (event := await anext(told)).key.startswith("host."):
                news.append(event.data["guest"]["instance_id"])
    assert (event.data["phase"], event.data["after"]["vm_state"]) == ("stopped", V.STOPPED)
    assert instance.id in news, "no heartbeat had to tell it"
    stopped = await pair.instance(instance.id)
    assert (stopped.vm_state, stopped.power_state, stopped.task_state) == (V.STOPPED, P.SHUTDOWN, None)
    start = await pair.act(instance.id, {"os-start": None})
    assert (await pair.action(start.headers["x-openstack-request-id"])).result == "Success", "it can be started again"


@pytest.mark.parametrize("how", ["delta", "listing"])
@pytest.mark.parametrize(
    ("recorded", "seen", "becomes", "word"),
    [
        ((V.ACTIVE, P.RUNNING), P.SHUTOFF, (V.STOPPED, P.SHUTDOWN), "stopped"),
        ((V.ACTIVE, P.RUNNING), P.CRASHED, (V.STOPPED, P.CRASHED), "crashed"),
        ((V.ACTIVE, P.RUNNING), P.PAUSED, (V.PAUSED, P.PAUSED), "paused"),
        ((V.PAUSED, P.PAUSED), P.RUNNING, (V.ACTIVE, P.RUNNING), "running"),
        ((V.STOPPED, P.SHUTDOWN), P.RUNNING, (V.ACTIVE, P.RUNNING), "running"),
        ((V.SUSPENDED, P.SHUTDOWN), P.RUNNING, (V.ACTIVE, P.RUNNING), "running"),
        ((V.ERROR, P.RUNNING), P.SHUTOFF, (V.ERROR, P.SHUTDOWN), "stopped"),
        ((V.RESCUED, P.RUNNING), P.PAUSED, (V.RESCUED, P.PAUSED), "paused"),
    ],
)
async def test_what_was_done_behind_our_back_is_adopted(
    host: Spoken, how: str, recorded: Any, seen: PowerState, becomes: Any, word: str
) -> None:
    instance = await host.instance(vm_state=recorded[0], power_state=recorded[1])
    async with host.world.client.subscribed(f"instance.power.*.{instance.id}") as told:
        await (host.delta(instance.id, seen) if how == "delta" else host.listing({instance.id: seen}))
        event = await anext(told)
    assert event.data["phase"] == word
    found = await host.world.instance(instance.id)
    assert (found.vm_state, found.power_state, found.task_state) == (*becomes, None)


async def test_a_guest_is_missing_when_three_listings_in_a_row_do_not_show_it(host: Spoken) -> None:
    instance = await host.instance()
    running = {instance.id: P.RUNNING}
    async with host.world.client.subscribed(f"instance.power.*.{instance.id}") as told:
        for shown in ({}, {}, running, {}, {}):
            await host.listing(shown)
        await host.is_heard()
        assert (await host.world.instance(instance.id)).power_state is P.RUNNING, "never three in a row"
        async for _ in polling("the guest to be missing"):
            await host.listing({})
            if (await host.world.instance(instance.id)).power_state is P.NOSTATE:
                break
        event = await anext(told)
    assert event.data["phase"] == "missing"
    found = await host.world.instance(instance.id)
    assert (found.vm_state, found.power_state) == (V.ACTIVE, P.NOSTATE), "it is nobody's to say what became of it"


async def test_a_listing_that_failed_proves_nothing(host: Spoken) -> None:
    instance = await host.instance()
    for _ in range(5):
        await host.listing(None)
    await host.is_heard()
    assert (await host.world.instance(instance.id)).power_state is P.RUNNING


async def test_an_old_report_never_overrules_a_newer_one(host: Spoken) -> None:
    instance = await host.instance()
    await host.listing({instance.id: P.RUNNING}, sequence=5)
    async with host.world.client.subscribed(f"instance.power.*.{instance.id}") as told:
        await host.delta(instance.id, P.PAUSED, sequence=9)
        await anext(told)
    await host.listing({instance.id: P.PAUSED}, sequence=20)
    await host.listing({instance.id: P.SHUTOFF}, sequence=19)
    await host.delta(instance.id, P.RUNNING, sequence=18)
    await host.listing({instance.id: P.RUNNING}, sequence=20)
    host.numbers = count(21)
    await host.is_heard()
    found = await host.world.instance(instance.id)
    assert (found.vm_state, found.power_state) == (V.PAUSED, P.PAUSED)


async def test_a_listing_begun_before_a_change_never_overrules_the_news_of_it(host: Spoken) -> None:
    instance = await host.instance()
    async with host.world.client.subscribed(f"instance.power.*.{instance.id}") as told:
        await host.delta(instance.id, P.PAUSED, sequence=9)
        await anext(told)
    await host.listing({instance.id: P.RUNNING}, sequence=8)
    await host.is_heard()
    assert (await host.world.instance(instance.id)).vm_state is V.PAUSED


async def test_a_report_begun_before_an_action_ended_never_overrules_it(host: Spoken) -> None:
    seen = {"boot": host.boot, "sequence": 30}
    instance = await host.instance(vm_state=V.STOPPED, power_state=P.SHUTDOWN, power_seen=seen)
    await host.listing({instance.id: P.RUNNING}, sequence=29)
    host.numbers = count(31)
    await host.is_heard()
    assert (await host.world.instance(instance.id)).vm_state is V.STOPPED
    async with host.world.client.subscribed(f"instance.power.*.{instance.id}") as told:
        await host.listing({instance.id: P.RUNNING})
        await anext(told)
    assert (await host.world.instance(instance.id)).vm_state is V.ACTIVE


async def test_a_report_of_an_earlier_boot_is_dropped(host: Spoken) -> None:
    instance = await host.instance()
    boot, host.boot = host.boot, "an-earlier-boot"
    await host.listing({instance.id: P.SHUTOFF}, sequence=1000)
    await host.delta(instance.id, P.SHUTOFF, sequence=1001)
    host.boot = boot
    await host.is_heard()
    assert (await host.world.instance(instance.id)).vm_state is V.ACTIVE


async def test_an_instance_at_work_is_let_alone(host: Spoken) -> None:
    instance = await host.instance(task_state="powering-off")
    await host.listing({instance.id: P.SHUTOFF})
    await host.delta(instance.id, P.SHUTOFF)
    await host.is_heard()
    found = await host.world.instance(instance.id)
    assert (found.vm_state, found.power_state, found.task_state) == (V.ACTIVE, P.RUNNING, "powering-off")


async def test_another_hosts_word_on_a_guest_does_not_count(host: Spoken) -> None:
    instance = await host.instance(host="host-1", power_seen=None)
    try:
        await host.delta(instance.id, P.PAUSED)
        await host.is_heard()
        assert (await host.world.instance(instance.id)).vm_state is V.ACTIVE
    finally:
        with host.world.fleet.connect() as client:
            client[DATABASE_NAME]["instances"].delete_one({"_id": instance.id})
