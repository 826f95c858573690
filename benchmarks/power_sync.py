"""Power-state sync: what heartbeats cost one power_sync process, on simulated fleets of up to 100,000 guests.

The hosts are spoken for through the real broker, at the pace of real ones; broker, database and power_sync are real.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from rich.console import Console
from rich.table import Table
from virtfleet_common.bus import EVENTS, Outgoing
from virtfleet_common.errors import Unroutable
from virtfleet_common.messages import GuestReport, Heartbeat
from virtfleet_common.rabbit import RabbitBus
from virtfleet_common.records import Flavor, Host, Instance
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import PowerState, VmState
from virtfleet_common.store import Store
from virtfleet_local.broker import Broker
from virtfleet_local.database import Database
from virtfleet_local.processes import ManagedProcess, free_ports
from virtfleet_local.readiness import is_ready

FLEETS = ((250, 100), (1_000, 25), (1_000, 100))
"""Hosts, and guests on each."""
INTERVAL = 10.0
ROUNDS = 3
CHANGING = 100
"""One guest of so many changes in an interval."""
DATABASE = "power_sync_bench"
FLAVOR = Flavor(id="1", name="m1.small", vcpus=1, ram_mb=1_024, disk_gb=10)
_BOOT = "boot"
_LOOK_AGAIN = 0.1
_DEADLINE = 60.0
Figures = Mapping[str, float]


@dataclass
class SimulatedHost:
    """What one host would say of itself."""

    name: str
    guests: dict[str, PowerState]
    sequence: int = 0

    def heartbeat(self) -> Heartbeat:
        """The next one."""
        self.sequence += 1
        guests = [GuestReport(instance_id=id_, power_state=power, epoch=1) for id_, power in self.guests.items()]
        now = datetime.now(UTC)
        return Heartbeat(host=self.name, boot_id=_BOOT, sequence=self.sequence, sent_at=now, guests=guests)

    def change(self, numbers: range) -> None:
        """Some guests run that did not, or the other way round."""
        for number in numbers:
            id_ = list(self.guests)[number]
            is_on = self.guests[id_] is PowerState.RUNNING
            self.guests[id_] = PowerState.SHUTOFF if is_on else PowerState.RUNNING


@dataclass
class Bench:
    """One fleet, and the power_sync that keeps its record."""

    store: Store
    bus: RabbitBus
    process: psutil.Process
    hosts: list[SimulatedHost]

    async def interval(self, *, changing: int | None = None) -> None:
        """One heartbeat of each host, spread over the interval, and all of it on record; one guest in `changing` is
        another than before."""
        began = time.monotonic()
        for number, host in enumerate(self.hosts):
            if changing:
                host.change(range(number % changing, len(host.guests), changing))
            await asyncio.sleep(began + INTERVAL * number / len(self.hosts) - time.monotonic())
            await self._say(host)
        await asyncio.sleep(began + INTERVAL - time.monotonic())
        await self._on_record()

    async def is_heard(self) -> None:
        """Speak until somebody listens."""
        while True:
            try:
                await self._say(self.hosts[0])
            except Unroutable:
                await asyncio.sleep(_LOOK_AGAIN)
            else:
                return

    async def _say(self, host: SimulatedHost) -> None:
        key, kind = f"host.{host.name}.heartbeat", "virtfleet.host.heartbeat"
        await self.bus.publish(Outgoing(EVENTS, key, kind, host.heartbeat(), "benchmark", mandatory=True))

    async def _on_record(self) -> None:
        database = self.store.client[DATABASE]
        running = sum(power is PowerState.RUNNING for host in self.hosts for power in host.guests.values())
        unheard, active = {"sequence": {"$lt": self.hosts[-1].sequence}}, {"vm_state": VmState.ACTIVE}
        deadline = time.monotonic() + _DEADLINE
        while (
            await database.hosts.count_documents(unheard) or await database.instances.count_documents(active) != running
        ):
            if time.monotonic() > deadline:
                raise RuntimeError("power_sync did not take what the hosts said")
            await asyncio.sleep(_LOOK_AGAIN)

    async def spent(self) -> Figures:
        """What power_sync and the database have done so far."""
        admin = self.store.client.admin
        times, queries = self.process.cpu_times(), (await admin.command("top"))["totals"]
        return {
            "seconds": time.monotonic(),
            "cpu_s": times.user + times.system,
            "update_commands": (await admin.command("serverStatus"))["metrics"]["commands"]["update"]["total"],
            "host_updates": await self._writes("hosts"),
            "instance_writes": await self._writes("instances"),
            "instance_reads": queries[f"{DATABASE}.instances"]["queries"]["count"],
        }

    async def _writes(self, collection: str) -> int:
        rows = self.store.client[DATABASE][collection].aggregate([{"$collStats": {"latencyStats": {}}}])
        return int((await anext(rows))["latencyStats"]["writes"]["ops"])


async def measure(folder: Path, console: Console) -> dict[str, Any]:
    """Every fleet, unchanged and with some guests changing."""
    with Broker(folder / "broker") as broker, Database(folder / "database") as database:
        rows = [row for size in FLEETS for row in await _at(size, broker, database, folder)]
    _show(rows, console)
    return {"interval": INTERVAL, "fleets": rows}


async def _at(size: tuple[int, int], broker: Broker, database: Database, folder: Path) -> list[dict[str, Any]]:
    async with _bench(size, broker, database, folder) as bench:
        await bench.is_heard()
        for _ in range(2):
            await bench.interval()  # the view is read, and the listings agree
        began = await bench.spent()
        await asyncio.sleep(INTERVAL)
        idle = _less(await bench.spent(), began)
        return [await _measured(bench, idle, changing) for changing in (None, CHANGING)]


async def _measured(bench: Bench, idle: Figures, changing: int | None) -> dict[str, Any]:
    """Some intervals; what a heartbeat costs is what they cost more than the same time without any."""
    began = await bench.spent()
    for _ in range(ROUNDS):
        await bench.interval(changing=changing)
    total = _less(await bench.spent(), began)
    beats, guests = ROUNDS * len(bench.hosts), len(bench.hosts[0].guests)
    each = {name: (total[name] - idle[name] * total["seconds"] / idle["seconds"]) / beats for name in total}
    return {
        "hosts": len(bench.hosts), "guests": guests, "changes": guests / changing if changing else 0,
        "cpu_ms": each.pop("cpu_s") * 1000, **{name: each[name] for name in each if name != "seconds"},
        "cores": total["cpu_s"] / total["seconds"], "idle_cores": idle["cpu_s"] / idle["seconds"],
    }  # fmt: skip


def _less(after: Figures, before: Figures) -> Figures:
    return {name: after[name] - before[name] for name in after}


@asynccontextmanager
async def _bench(size: tuple[int, int], broker: Broker, database: Database, folder: Path) -> AsyncIterator[Bench]:
    store = Store.connect(CommonSettings(mongodb_url=database.url, database=DATABASE))
    bus = RabbitBus(broker.url, name="benchmark")
    process = ManagedProcess("power-sync", folder)
    try:
        hosts = await _filled(store, *size)
        _start(process, broker, database)
        yield Bench(store, bus, psutil.Process(process.pid), hosts)
    finally:
        process.stop()
        await bus.close()
        await store.client.drop_database(DATABASE)
        store.close()


async def _filled(store: Store, hosts: int, guests: int) -> list[SimulatedHost]:
    """A fleet on record, all its guests running."""
    await store.client.drop_database(DATABASE)
    await store.prepare()
    names = [f"host-{number:04}" for number in range(hosts)]
    registered = {"boot_id": _BOOT, "last_seen": datetime.now(UTC)}  # one never heard of is lost
    rows = [Host(id=name, uuid=name, **registered).document() for name in names]
    await store.client[DATABASE].hosts.insert_many(rows)
    made = [SimulatedHost(name, {str(uuid4()): PowerState.RUNNING for _ in range(guests)}) for name in names]
    for host in made:
        instances = [_instance(id_, host.name).document() for id_ in host.guests]
        await store.client[DATABASE].instances.insert_many(instances)
    return made


def _instance(id_: str, host: str) -> Instance:
    now = datetime.now(UTC)
    return Instance(
        id=id_, name="guest", project_id="p", user_id="u", flavor=FLAVOR, vm_state=VmState.ACTIVE, host=host, epoch=1,
        power_state=PowerState.RUNNING, created_at=now, updated_at=now,
    )  # fmt: skip


def _start(process: ManagedProcess, broker: Broker, database: Database) -> None:
    (port,) = free_ports(1)
    addresses = {
        "VIRTFLEET_MONGODB_URL": database.url, "VIRTFLEET_AMQP_URL": broker.url, "VIRTFLEET_DATABASE": DATABASE,
        "VIRTFLEET_HEALTH_PORT": str(port), "VIRTFLEET_LOG_LEVEL": "WARNING",
        "VIRTFLEET_HOST_UNKNOWN_AFTER": "3600", "VIRTFLEET_HOST_DOWN_AFTER": "7200",  # there are pauses here
    }  # fmt: skip
    process.start([sys.executable, "-m", "virtfleet_power_sync.service"], {**os.environ, **addresses})
    process.wait_until(partial(is_ready, port), 60)


def _show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"Power-state sync, a heartbeat of each host every {INTERVAL:.0f} s; per heartbeat")
    for name in (
        "hosts", "guests each", "changed", "CPU ms", "host updates", "update commands", "instance writes",
        "instance reads", "cores, all", "cores, no heartbeats",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        counts = (row[name] for name in ("host_updates", "update_commands", "instance_writes", "instance_reads"))
        table.add_row(
            f"{row['hosts']:,}", str(row["guests"]), f"{row['changes']:g}", f"{row['cpu_ms']:.2f}",
            *(f"{round(count, 2) + 0.0:.2f}" for count in counts), f"{row['cores']:.3f}", f"{row['idle_cores']:.3f}",
        )  # fmt: skip
    console.print(table)
