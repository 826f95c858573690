"""Witnesses that cannot be bribed: the database's own log of what was announced, the hypervisors' own listings."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from virtfleet_common.messages import Heartbeat
from virtfleet_common.records import Instance
from virtfleet_common.states import PowerState, VmState
from virtfleet_common.store import InstanceQuery
from virtfleet_local.fleet import DATABASE_NAME, LocalFleet

from tests.world import ENDS, World, everything_is_delivered, polling

_VM_STATES = {
    PowerState.RUNNING: {VmState.ACTIVE},
    PowerState.PAUSED: {VmState.PAUSED},
    PowerState.SHUTDOWN: {VmState.STOPPED, VmState.SUSPENDED},
    PowerState.NOSTATE: set(VmState),
}


class Chronicle:
    """What was committed to be announced since the chronicle was begun: no lost queue can take it back."""

    def __init__(self, fleet: LocalFleet) -> None:
        self._fleet = fleet
        with fleet.connect() as client:
            self._since = client.admin.command("ping")["operationTime"]

    async def endings(self) -> Mapping[str, list[str]]:
        """By action: how it was announced to have ended, as often as it was."""
        return await asyncio.to_thread(self._endings)

    def _endings(self) -> Mapping[str, list[str]]:
        events = {effect["id"]: effect["data"] for effect in self._effects() if effect["kind"] == "event"}
        found: dict[str, list[str]] = defaultdict(list)
        for data in events.values():
            if data["phase"] in ENDS and data["request_id"]:
                found[data["request_id"]].append(data["phase"])
        return found

    def _effects(self) -> Iterator[dict[str, Any]]:
        with self._fleet.connect() as client:
            database, mark = client[DATABASE_NAME], uuid4().hex
            database["marks"].insert_one({"_id": mark})
            with database.watch(start_at_operation_time=self._since) as changes:
                for change in changes:
                    if change["documentKey"]["_id"] == mark:
                        return
                    if change["ns"]["coll"] == "instances":
                        yield from _outbox(change)


def _outbox(change: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The effects that a write put into an outbox, or left in it."""
    written = change.get("updateDescription", {}).get("updatedFields") or change.get("fullDocument") or {}
    for path, value in written.items():
        if path == "outbox":
            yield from value
        elif path.startswith("outbox."):
            yield value


async def ended_once(world: World, chronicle: Chronicle, action_ids: set[str]) -> None:
    """Every action has ended, was recorded in full, and was announced to have ended exactly once."""
    for action_id in action_ids:
        async for _ in polling(f"the record of {action_id} to be whole"):
            record = await world.action(action_id)
            if all(event.start and event.finish and event.result for event in record.events.values()):
                break
        assert record.result in {"Success", "Error", "superseded"}, record
    announced = await chronicle.endings()
    assert {id_: announced.get(id_, []) for id_ in action_ids if len(announced.get(id_, [])) != 1} == {}


async def record_is_true(world: World) -> None:
    """The record says of every guest what its hypervisor says, soon; and each host holds what its guests take."""
    wrong: list[str] = []
    async with world.client.subscribed("host.*.heartbeat") as events:
        listings: dict[str, Heartbeat] = {}
        async with asyncio.timeout(30):
            async for event in events:
                beat = Heartbeat.model_validate(event.data)
                listings[beat.host] = beat
                if set(listings) != set(world.fleet.file.hosts):
                    continue
                wrong = await _differences(world, listings)
                if not wrong:
                    break
                listings.clear()
    assert not wrong, wrong
    await everything_is_delivered(world)
    await _books_balance(world)


async def _differences(world: World, listings: Mapping[str, Heartbeat]) -> list[str]:
    recorded = {one.id: one for one in await world.store.instances.find(InstanceQuery())}
    listed = {
        guest.instance_id: (host, guest.power_state.shown)
        for host, beat in listings.items()
        for guest in beat.guests or ()
    }
    wrong = [f"{id_} runs unrecorded on {where}" for id_, where in listed.items() if id_ not in recorded]
    return wrong + [f"{one}, listed as {listed.get(one.id)}" for one in recorded.values() if not _is_true(one, listed)]


def _is_true(instance: Instance, listed: Mapping[str, tuple[str, PowerState]]) -> bool:
    host, power = listed.get(instance.id, (instance.host, PowerState.NOSTATE))
    if instance.vm_state is VmState.ERROR:
        return instance.power_state.shown is power
    return (instance.host, instance.power_state.shown) == (host, power) and instance.vm_state in _VM_STATES[power]


async def _books_balance(world: World) -> None:
    recorded = await world.store.instances.find(InstanceQuery())
    for name in world.fleet.file.hosts:
        host = await world.host(name)
        held = Counter(allocation.instance_id for allocation in host.allocations)
        assert held == Counter(one.id for one in recorded if one.host == name)
        assert host.used.ram_mb == sum(allocation.ram_mb for allocation in host.allocations)
