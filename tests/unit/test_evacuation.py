"""Which guests of lost hosts are evacuated by themselves, in what order, and how many hosts at the most."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import EVACUATION, FenceProof, Host, Move, Resources
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState, TaskState, VmState
from virtfleet_common.store import Expect
from virtfleet_common.store.memory import MemoryStore
from virtfleet_power_sync.evacuation import Evacuator
from virtfleet_power_sync.limits import within_limit

from tests.unit.records import NOW, a_host, an_instance

PROOF = FenceProof(proof="silence", at=NOW)
LIMITED = PowerSyncSettings(auto_loss_limit=2, auto_loss_window=600)


def lost(name: str = "host-1", seconds_ago: float = 60, **more: Any) -> Host:
    at = NOW - timedelta(seconds=seconds_ago)
    return a_host(name, **{"state": HostState.DOWN, "lost_at": at, "fence": PROOF, **more})


# How many hosts


@pytest.mark.parametrize(
    ("hosts", "dealt_with"),
    [
        ([], []),
        ([lost("a"), lost("b")], ["a", "b"]),
        ([lost("a", 10), lost("b", 30), lost("c", 20)], ["b", "c"]),
        ([lost("a"), lost("b"), lost("c"), lost("d")], ["a", "b"]),
        ([lost("a", 601), lost("b", 599), lost("c", 598), lost("d", 597)], ["a", "b", "c"]),
        ([lost("a"), lost("b"), lost("c", is_forced_down=True)], ["a", "b", "c"]),
        ([lost("a"), lost("b"), lost("c", lost_at=None)], ["a", "b", "c"]),
    ],
    ids=["none", "the limit", "the first", "at once", "long ago", "forced down", "nobody knows when"],
)
def test_no_more_hosts_than_the_limit_are_dealt_with_by_themselves(hosts: list[Host], dealt_with: list[str]) -> None:
    assert [host.id for host in within_limit(hosts, NOW, LIMITED)] == dealt_with


# Which guests


class Still:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at


class Sea:
    """Lost hosts, their guests, and what evacuates them."""

    def __init__(self, **settings: Any) -> None:
        self.store, self.clock = MemoryStore(), Still()
        known = PowerSyncSettings(**{"auto_evacuate": "all", **settings})
        self.evacuator = Evacuator(self.store, Relay(self.store, MemoryBus(), "virtfleet/test"), self.clock, known)

    async def guest(self, name: str, host: str = "host-1", age: float = 0, **fields: Any) -> None:
        created_at = NOW - timedelta(seconds=age)
        guest = an_instance(**{"host": host, "created_at": created_at, **fields})
        await self.store.instances.insert(guest.model_copy(update={"id": name}))

    async def check(self, *hosts: Host) -> set[str]:
        """One round; what is on its way after it."""
        for host in hosts:
            await self.store.hosts.register(host.id, uuid=host.uuid, limits=Resources(), facts={})
            await self.store.hosts.set_fields(host.id, {"state": HostState.DOWN})
        await self.evacuator.check(hosts)
        return await self.on_the_way()

    async def ends(self, name: str, **fields: Any) -> None:
        """Its evacuation is over, one way or the other."""
        over = {"move": None, "task_state": None, **fields}
        await self.store.instances.transition(name, expect=Expect(), set=over, end=True)

    async def on_the_way(self) -> set[str]:
        moving = await self.store.instances.find_evacuating("host-1")
        assert all(one.task_state is TaskState.REBUILDING for one in moving)
        return {one.id for one in moving}


async def test_the_most_urgent_go_first_and_then_the_oldest() -> None:
    sea = Sea(evacuation_parallelism=1)
    await sea.guest("young")
    await sea.guest("old", age=10)
    await sea.guest("urgent", metadata={"ha_priority": "5"})
    await sea.guest("most-urgent", metadata={"ha_priority": "50"})
    await sea.guest("not-urgent", age=20, metadata={"ha_priority": "-1"})
    await sea.guest("unclear", age=5, metadata={"ha_priority": "very"})
    order = []
    while went := await sea.check(lost()):
        (one,) = went
        order.append(one)
        await sea.ends(one, host="host-9")
    assert order == ["most-urgent", "urgent", "old", "unclear", "young", "not-urgent"]


async def test_no_more_than_the_limit_are_on_their_way_at_once() -> None:
    sea = Sea(evacuation_parallelism=3)
    for number in range(5):
        await sea.guest(f"g{number}", age=-number)
    assert await sea.check(lost()) == {"g0", "g1", "g2"}
    assert await sea.check(lost()) == {"g0", "g1", "g2"}


@pytest.mark.parametrize(("policy", "gone"), [("all", {"wanted", "silent"}), ("off", {"wanted"})])
async def test_an_instance_says_for_itself_whether_it_goes(policy: str, gone: set[str]) -> None:
    sea = Sea(auto_evacuate=policy)
    await sea.guest("silent")
    await sea.guest("wanted", metadata={"ha": "true"})
    await sea.guest("unwanted", metadata={"ha": "false"})
    assert await sea.check(lost()) == gone


async def test_only_what_may_be_moved_goes() -> None:
    sea = Sea()
    await sea.guest("elsewhere", host="host-2")
    await sea.guest("rescued", vm_state=VmState.RESCUED)
    await sea.guest("at-work", task_state=TaskState.REBOOTING)
    resize = Move(id="m", type="resize", source="host-3", source_claim=None, old_vm_state=VmState.ACTIVE)
    await sea.guest("resized", move=resize)
    await sea.guest("stopped", vm_state=VmState.STOPPED)
    assert await sea.check(lost()) == {"stopped"}


@pytest.mark.parametrize("host", [lost(fence=None), a_host(), a_host(state=HostState.UNKNOWN)])
async def test_nothing_goes_from_a_host_that_is_not_surely_off(host: Host) -> None:
    sea = Sea()
    await sea.guest("g")
    assert await sea.check(host) == set()


async def test_nothing_goes_from_a_host_that_came_back_while_it_was_looked_at() -> None:
    sea = Sea()
    await sea.guest("g")
    await sea.store.hosts.register("host-1", uuid="u", limits=Resources(), facts={"boot_id": "new"})
    await sea.evacuator.check([lost()])
    assert await sea.on_the_way() == set()


async def test_a_guest_that_found_no_shelter_is_tried_again_after_a_while() -> None:
    sea = Sea(evacuation_retry=60)
    await sea.guest("g")
    assert await sea.check(lost()) == {"g"}
    found = await sea.store.instances.get("g")
    assert found is not None
    assert found.move is not None
    assert (found.move.type, found.move.source) == (EVACUATION, "host-1")
    await sea.ends("g")
    sea.clock.at = NOW + timedelta(seconds=59)
    assert await sea.check(lost()) == set()
    sea.clock.at = NOW + timedelta(seconds=60)
    assert await sea.check(lost()) == {"g"}
