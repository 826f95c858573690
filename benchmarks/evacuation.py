"""A host of a `test:///` fleet loses its power with twenty guests on it: seconds until all run elsewhere, by part."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from virtfleet_common.client import FleetClient, FleetEvent
from virtfleet_common.messages import CreateInstance, DeleteInstance
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import VmState
from virtfleet_common.store import Store
from virtfleet_local.fleet import LocalFleet

HOSTS = 4
GUESTS = 20
ROUNDS = 8
SETTINGS = {
    "VIRTFLEET_AUTO_EVACUATE": "all",
    "VIRTFLEET_HEARTBEAT_INTERVAL": "1",
    "VIRTFLEET_HOST_UNKNOWN_AFTER": "2",
    "VIRTFLEET_HOST_DOWN_AFTER": "3",
    "VIRTFLEET_LIVENESS_INTERVAL": "0.25",
    "VIRTFLEET_AUTO_LOSS_LIMIT": str(ROUNDS),
}
PARTS = {
    "detected": "the host is down",
    "fenced": "it is fenced",
    "placed": "the last guest has a host",
    "active": "the last guest is active",
}
_TOLD = ("instance.*.end.*", "instance.*.error.*", "host.*.up", "host.*.down", "host.*.fenced")
_PLACEMENT = "rebuild_server"
_LOOK_AGAIN = 0.05
_DEADLINE = 120.0


class Bench:
    """One fleet, and when it told what; all times are this machine's."""

    def __init__(self, fleet: LocalFleet, store: Store, client: FleetClient) -> None:
        self._fleet = fleet
        self._store = store
        self._client = client
        self._told: dict[str, tuple[float, FleetEvent]] = {}
        self._news = asyncio.Condition()

    async def read(self, arriving: AsyncIterator[FleetEvent]) -> None:
        """Keep the first event of each key, for ever."""
        async for event in arriving:
            async with self._news:
                self._told.setdefault(event.key, (time.time(), event))
                self._news.notify_all()

    async def round(self, host: str) -> dict[str, float]:
        """One loss of a host: seconds from the power cut to the end of each part."""
        guests = await self._created(host)
        self._told.clear()
        cut_at = time.time()
        await asyncio.to_thread(self._fleet.kill_host, host)
        (down, fenced), ends = await self._hosts_loss(host), await self._ends("evacuate", guests)
        placed = [await self._placed_at(event.data["request_id"]) for _, event in ends]
        moments = (down, fenced, max(placed), max(at for at, _ in ends))
        load = os.getloadavg()[0]
        await self._demand_elsewhere(guests, host)
        await self._mended(guests, host)
        return {"load": load, **{part: moment - cut_at for part, moment in zip(PARTS, moments, strict=True)}}

    async def _created(self, host: str) -> Sequence[str]:
        wanted = CreateInstance(name="guest", flavor="m1.tiny", availability_zone=f"nova:{host}", max_count=GUESTS)
        guests = (await self._client.command(wanted)).instance_ids
        await self._ends("create", guests)
        return guests

    async def _hosts_loss(self, host: str) -> tuple[float, float]:
        (down, _), (fenced, _) = await self._heard([f"host.{host}.down", f"host.{host}.fenced"])
        return down, fenced

    async def _ends(self, action: str, guests: Iterable[str]) -> list[tuple[float, FleetEvent]]:
        return await self._heard([f"instance.{action}.end.{id_}" for id_ in guests])

    async def _heard(self, keys: Sequence[str]) -> list[tuple[float, FleetEvent]]:
        """When each was told, and what. Raises RuntimeError when an action fails."""
        async with asyncio.timeout(_DEADLINE), self._news:
            await self._news.wait_for(lambda: self._faults() or self._told.keys() >= set(keys))
        if faults := self._faults():
            raise RuntimeError(f"actions failed: {faults}")
        return [self._told[key] for key in keys]

    def _faults(self) -> list[Any]:
        return [event.data["fault"] for key, (_, event) in self._told.items() if ".error." in key]

    async def _placed_at(self, action_id: str) -> float:
        """When the scheduler handed the guest over to the host it had claimed, as the action's history says."""
        async with asyncio.timeout(_DEADLINE):
            while True:
                action = await self._store.actions.get(action_id)
                steps = action.events.values() if action else ()
                finishes = [step.finish for step in steps if step.event == _PLACEMENT and step.finish]
                if finishes:
                    return max(finishes).timestamp()
                await asyncio.sleep(_LOOK_AGAIN)

    async def _demand_elsewhere(self, guests: Sequence[str], lost: str) -> None:
        found = [(one.vm_state, one.host) for one in await self._store.instances.find_ids(guests)]
        if any(state is not VmState.ACTIVE or host == lost for state, host in found) or len(found) != GUESTS:
            raise RuntimeError(f"after the loss of {lost}: {found}")

    async def _mended(self, guests: Sequence[str], host: str) -> None:
        """The host is back, and its guests are deleted."""
        await asyncio.to_thread(self._fleet.start_host, host)
        await self._heard([f"host.{host}.up"])
        for id_ in guests:
            await self._client.command(DeleteInstance(instance_id=id_))
        await self._ends("delete", guests)


async def measure(folder: Path, console: Console) -> dict[str, Any]:
    """One host after the other is lost, and returns."""
    async with _bench(folder) as bench:
        rounds = [await bench.round(f"host-{number % HOSTS + 1}") for number in range(ROUNDS)]
    _show(rounds, console)
    return {
        "hosts": HOSTS,
        "guests": GUESTS,
        "settings": SETTINGS,
        "rounds": rounds,
        **_summary(rounds),
    }


@asynccontextmanager
async def _bench(folder: Path) -> AsyncIterator[Bench]:
    fleet = LocalFleet(folder, hosts=HOSTS, hypervisor="test", env={"*": SETTINGS})
    await asyncio.to_thread(fleet.up)
    store = Store.connect(CommonSettings(mongodb_url=fleet.file.mongodb_url))
    try:
        async with FleetClient(fleet.file.amqp_url) as client, client.subscribed(*_TOLD) as arriving:
            bench = Bench(fleet, store, client)
            reading = asyncio.create_task(bench.read(arriving))
            yield bench
            reading.cancel()
    finally:
        store.close()
        await asyncio.to_thread(fleet.down)


def _summary(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each part for itself, in seconds."""
    columns = {part: [one[part] for one in rounds] for part in PARTS}
    return {
        "median": {part: median(column) for part, column in columns.items()},
        "worst": {part: max(column) for part, column in columns.items()},
    }


def _show(rounds: list[dict[str, float]], console: Console) -> None:
    title = f"A host of {HOSTS} (test:///) loses its power with {GUESTS} guests on it; seconds from then on until"
    table = Table("", *PARTS.values(), "load average", title=title)
    for name, row in (*((f"round {number}", one) for number, one in enumerate(rounds, 1)), *_summary(rounds).items()):
        table.add_row(name, *(f"{row[part]:.2f}" for part in PARTS), f"{row['load']:.1f}" if "load" in row else "")
    console.print(table)
