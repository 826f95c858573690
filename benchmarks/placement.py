"""Placement: one decision at 1,000, 10,000 and 100,000 hosts, and placements a second with their claims in MongoDB."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from itertools import count
from random import Random
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

import uvloop
from rich.console import Console
from rich.table import Table
from virtfleet_common.audit import Books, Kind, compare
from virtfleet_common.records import Flavor, Host, Instance, Resources
from virtfleet_common.settings import CommonSettings, SchedulerSettings
from virtfleet_common.states import VmState
from virtfleet_common.store import Store
from virtfleet_common.store.host_feed import HostChange, as_change
from virtfleet_scheduler.columns import HostColumns
from virtfleet_scheduler.decide import decide
from virtfleet_scheduler.placement import Placement
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.view import HostView

SIZES = (1_000, 10_000, 100_000)
ROUNDS = 5
DECISIONS = 200
FLEETS = ((1_000, 1), (5_000, 1), (10_000, 1), (5_000, 2), (5_000, 4))
"""Hosts and schedulers of each run with claims."""
PLACEMENTS = 8_000
IN_FLIGHT = 64
LIMITS = Resources(vcpus=256, ram_mb=262_144, disk_gb=4_096)
FLAVOR = Flavor(id="1", name="m1.small", vcpus=1, ram_mb=1_024, disk_gb=10)
DATABASE = "placement_bench"


async def measure(mongodb_url: str, console: Console) -> dict[str, Any]:
    """Both parts; the database is emptied afterwards."""
    decisions = [decisions_at(size) for size in SIZES]
    _show_decisions(decisions, console)
    claims = [await _claims(mongodb_url, hosts, schedulers) for hosts, schedulers in FLEETS]
    _show_claims(claims, console)
    return {"decisions": decisions, "claims": claims}


def decisions_at(size: int) -> dict[str, Any]:
    """Decisions with the default filters and weighers over a fleet that is in use: medians of several rounds."""
    hosts, rules = HostColumns(seed=1), Rules.of(SchedulerSettings(placement_seed=1))
    hosts.replace_all(used_hosts(size))
    request = Request(4, 8_192, 80, project_id="p", flavor_name="m1.large")
    rounds = [sorted(_timed(hosts, request, rules)) for _ in range(ROUNDS)]
    return {
        "hosts": size,
        "p50_ms": median(median(one) for one in rounds) * 1000,
        "p95_ms": median(quantiles(one, n=20)[-1] for one in rounds) * 1000,
    }


def _timed(hosts: HostColumns, request: Request, rules: Rules) -> Iterable[float]:
    for _ in range(DECISIONS):
        began = time.perf_counter()
        decide(hosts, request, rules)
        yield time.perf_counter() - began


def used_hosts(size: int) -> list[HostChange]:
    """Hosts as a busy fleet has them: some down, some disabled, the others filled to different degrees."""
    chance = Random(1)

    def one(number: int) -> dict[str, Any]:
        free = {kind: float(chance.randrange(int(limit))) for kind, limit in LIMITS.model_dump().items()}
        return {
            "_id": f"host-{number:06}", "free": free, "limits": LIMITS.model_dump(), "total": LIMITS.model_dump(),
            "state": "down" if chance.random() < 0.02 else "up", "is_enabled": chance.random() > 0.02,
            "placed": chance.randrange(60), "arch": "x86_64",
        }  # fmt: skip

    return [as_change(one(number)) for number in range(size)]


async def _claims(mongodb_url: str, hosts: int, schedulers: int) -> dict[str, Any]:
    """An empty fleet, and scheduler processes that place guests on it as fast as they can."""
    store = _store(mongodb_url)
    try:
        await _fill(store, hosts)
        each = PLACEMENTS // schedulers
        processes = [await _started(mongodb_url, each) for _ in range(schedulers)]
        for process in processes:
            await process.stdout.readline()  # it has read the hosts
        began = time.perf_counter()
        for process in processes:
            process.stdin.write(b"go\n")
        ended = [(await process.stdout.readline()).decode() for process in processes]
        seconds = time.perf_counter() - began
        await asyncio.gather(*(process.wait() for process in processes))
        await _check(store)
        cpu, refused = (sum(float(out.split()[place]) for out in ended) for place in (0, 1))
    finally:
        await store.client.drop_database(DATABASE)
        store.close()
    return {
        "hosts": hosts, "schedulers": schedulers, "per_second": PLACEMENTS / seconds,
        "cpu_ms": cpu / PLACEMENTS * 1000, "refused": refused / PLACEMENTS,
    }  # fmt: skip


async def _check(store: Store) -> None:
    """The books are right. (The guests have no records here, so nothing holds the claims.)"""
    hosts = [host async for host in _all_hosts(store)]
    wrong = {one.kind for one in compare(Books(hosts, [], []))} - {Kind.LEAKED_CLAIM}
    if wrong or sum(len(host.allocations) for host in hosts) != PLACEMENTS:
        raise RuntimeError(f"the claims of the benchmark do not add up: {wrong}")


async def _all_hosts(store: Store) -> AsyncIterator[Host]:
    last = ""
    while page := await store.hosts.find_page(last):
        last = page[-1].id
        for host in page:
            yield host


def _store(mongodb_url: str) -> Store:
    return Store.connect(CommonSettings(mongodb_url=mongodb_url, database=DATABASE))


async def _fill(store: Store, hosts: int) -> None:
    await store.client.drop_database(DATABASE)
    await store.prepare()
    rows = [Host(id=f"host-{n:06}", uuid=str(n), limits=LIMITS, free=LIMITS).document() for n in range(hosts)]
    await store.client[DATABASE]["hosts"].insert_many(rows)


async def _started(mongodb_url: str, total: int) -> Any:
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, "-m", "benchmarks.placement", mongodb_url, str(total)]
    return await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe)


async def _work(mongodb_url: str, total: int) -> None:
    """One scheduler process: place `total` guests, then say what it cost."""
    store, settings = _store(mongodb_url), SchedulerSettings()
    view = HostView(store, settings)
    placement = Placement(store, view, Rules.of(settings), settings)
    following = asyncio.create_task(view.follow())
    await view.current()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    numbers, refused, began = count(), 0, time.process_time()

    async def worker() -> None:
        nonlocal refused
        while next(numbers) < total:
            instance = _an_instance()
            placed = await placement.choose(instance, FLAVOR, f"req-{instance.id}:1", is_first=True)
            refused += placed.refusals

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    print(time.process_time() - began, refused, flush=True)
    following.cancel()
    store.close()


def _an_instance() -> Instance:
    now = datetime.now(UTC)
    return Instance(
        id=str(uuid4()), name="guest", project_id="p", user_id="u", flavor=FLAVOR, vm_state=VmState.BUILDING,
        created_at=now, updated_at=now,
    )  # fmt: skip


def _show_decisions(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="One placement decision, default filters and weighers, one core")
    for name in ("hosts", "p50 ms", "p95 ms", "p50 per 1,000 hosts, µs"):
        table.add_column(name, justify="right")
    for row in rows:
        per_thousand = row["p50_ms"] * 1000 / (row["hosts"] / 1000)
        table.add_row(f"{row['hosts']:,}", f"{row['p50_ms']:.3f}", f"{row['p95_ms']:.3f}", f"{per_thousand:.1f}")
    console.print(table)


def _show_claims(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(title=f"Placements with their claims in MongoDB, {IN_FLIGHT} in flight per scheduler")
    for name in ("hosts", "schedulers", "per second", "scheduler CPU ms each", "claims refused each"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['hosts']:,}", str(row["schedulers"]), f"{row['per_second']:.0f}", f"{row['cpu_ms']:.2f}",
            f"{row['refused']:.3f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    uvloop.run(_work(sys.argv[1], int(sys.argv[2])))
