"""A host that returns: which of its guests it switches off, and which it starts, on libvirt's test driver."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from virtfleet_common.errors import Faulty, HypervisorFault
from virtfleet_common.records import EVACUATION, Instance, Move, Resources
from virtfleet_common.states import PowerState, VmState
from virtfleet_common.store import Expect
from virtfleet_common.store.memory import MemoryStore
from virtfleet_compute_agent.cleanups import Cleaner
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_compute_agent.returning import Returning
from virtfleet_compute_agent.storage import Storage

from tests.hypervisors import an_instance, settings

HOST, BOOT = "host-1", "boot-1"
EVACUATED = Move(id="m-1", type=EVACUATION, source=HOST, source_claim=None, old_vm_state=VmState.ACTIVE)


class Slow(LibvirtHypervisor):
    """A host that stands still between the definition of a guest and its start, until it is let go on, and whose guests
    in `stuck` cannot be switched off."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stands_still = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.stuck: set[str] = set()

    async def destroy(self, instance_id: str) -> None:
        if instance_id in self.stuck:
            raise HypervisorFault("the guest does not die", operation="destroy", code=0)
        await super().destroy(instance_id)

    async def define(self, instance: Instance) -> None:
        await super().define(instance)
        self.stands_still.set()
        await self.goes_on.wait()


class Home:
    """A host with a record of its own, and guests that it or the record knows."""

    def __init__(self, hypervisor: Slow, folder: Path) -> None:
        self.store = MemoryStore()
        self.hypervisor = hypervisor
        machine_boot = folder / "boot_id"
        machine_boot.write_text("the first boot of the machine")
        cleaner = Cleaner(HOST, self.store, hypervisor, Storage(self.store, hypervisor))
        config = settings("test:///default", folder, machine_boot_file=machine_boot)
        self.returning = Returning(HOST, self.store, hypervisor, cleaner, config)

    async def guest(self, power: PowerState = PowerState.RUNNING, **fields: Any) -> Instance:
        """An active instance of this host, whose guest is as `power` says."""
        instance = await self.store.instances.insert(an_instance(host=HOST, epoch=3, **fields))
        await self.hypervisor.define(instance)
        if power.is_on:
            await self.hypervisor.start(instance.id)
        return instance

    async def runs(self, instance: Instance) -> bool:
        guest = await self.hypervisor.observe(instance.id)
        return guest is not None and guest.power_state.is_on

    async def change(self, instance: Instance, **fields: Any) -> None:
        await self.store.instances.transition(instance.id, expect=Expect(), set=fields)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    hypervisor = Slow(settings("test:///default", tmp_path))
    await hypervisor.open()
    made = Home(hypervisor, tmp_path)
    await made.store.hosts.register(HOST, uuid="u", limits=Resources(), facts={"boot_id": BOOT})
    await made.returning.start_guests(BOOT)
    yield made
    for guest in await hypervisor.list_guests():
        await hypervisor.destroy(guest.instance_id)
        await hypervisor.undefine(guest.instance_id)
    await hypervisor.close()


async def test_a_guest_that_was_stopped_for_an_evacuation_which_failed_is_started_again(home: Home) -> None:
    instance = await home.guest(move=EVACUATED)
    await home.returning.sort_out()
    assert not await home.runs(instance)
    await home.change(instance, move=None)
    await home.returning.start_guests(BOOT)
    assert await home.runs(instance)


async def test_a_guest_that_was_off_already_is_nothing_that_the_agent_has_stopped(home: Home) -> None:
    instance = await home.guest(PowerState.SHUTDOWN, move=EVACUATED)
    await home.returning.sort_out()
    await home.change(instance, move=None)
    await home.returning.start_guests(BOOT)
    assert not await home.runs(instance)


async def is_evacuated(home: Home, instance: Instance) -> None:
    await home.change(instance, host="host-2", epoch=instance.epoch + 1)


async def is_being_evacuated(home: Home, instance: Instance) -> None:
    await home.change(instance, move=EVACUATED.model_dump())


async def went_and_came_back(home: Home, instance: Instance) -> None:
    await home.change(instance, epoch=instance.epoch + 2)


async def is_lost(home: Home, instance: Instance) -> None:
    await home.store.hosts.set_fields(HOST, {"boot_id": None})


async def is_as_it_was(home: Home, instance: Instance) -> None:
    """Nothing happened."""


@pytest.mark.parametrize(
    ("happens", "is_started"),
    [
        (is_evacuated, False),
        (is_being_evacuated, False),
        (went_and_came_back, False),
        (is_lost, False),
        (is_as_it_was, True),
    ],
)
async def test_a_guest_is_started_only_if_it_is_this_hosts_after_all_that_happened_while_the_agent_stood_still(
    home: Home, happens: Callable[[Home, Instance], Awaitable[None]], is_started: bool
) -> None:
    instance = await home.guest(PowerState.SHUTDOWN)
    await home.returning.power_off()
    home.hypervisor.stands_still.clear()
    home.hypervisor.goes_on.clear()
    starting = asyncio.create_task(home.returning.start_guests(BOOT))
    await home.hypervisor.stands_still.wait()
    await happens(home, instance)
    home.hypervisor.goes_on.set()
    await starting
    assert await home.runs(instance) is is_started


async def test_giving_the_guests_up_fails_if_one_of_them_still_runs(home: Home) -> None:
    stuck, other = await home.guest(), await home.guest()
    home.hypervisor.stuck.add(stuck.id)
    with pytest.raises(Faulty, match="1 of 2"):
        await home.returning.power_off()
    assert not await home.runs(other)
    home.hypervisor.stuck.clear()
    await home.returning.power_off()
    assert not await home.runs(stuck)
