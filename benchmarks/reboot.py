"""Hard reboots on `test:///` hosts: rate and latency at 1, 32 and 100 in flight, cost by part, and the floor."""

from typing import Any

from rich.console import Console
from rich.table import Table
from virtfleet_local.fleet import LocalFleet

from benchmarks import meters
from benchmarks.floor import bare_loop
from benchmarks.load import Load, Run

LOADS = ((1, 100), (32, 1600), (100, 3000))


def _hard(_: int) -> list[dict[str, Any]]:
    return [{"reboot": {"type": "HARD"}}]


async def measure(fleet: LocalFleet, console: Console) -> dict[str, Any]:
    """Run every load on one fleet, then the floor on its broker and database."""
    async with Load.on(fleet.file) as load:
        instances = await load.create(max(in_flight for in_flight, _ in LOADS))
        await load.repeat(instances, 32, 320, _hard)  # warm
        results = [await _one(fleet, load, instances, in_flight, total) for in_flight, total in LOADS]
    memory = meters.memory_mib(fleet)
    last = results[-1]
    floor = await bare_loop(
        fleet.file.amqp_url,
        fleet.file.mongodb_url,
        publishes=round(last["publishes"]),
        writes=round(last["writes"]),
        in_flight=100,
        total=1000,
    )
    _show(console, results, memory, floor)
    return {
        "loads": results,
        "memory_mib": memory,
        "floor_per_second": floor,
        "fraction_of_floor": last["per_second"] / floor,
    }


async def _one(fleet: LocalFleet, load: Load, instances: list[str], in_flight: int, total: int) -> dict[str, Any]:
    spent, counted = meters.cpu_seconds(fleet), meters.counted(fleet)
    run: Run = await load.repeat(instances, in_flight, total, _hard)
    done = len(run.latencies)
    cpu = meters.difference(spent, meters.cpu_seconds(fleet), done)
    counts = meters.difference(counted, meters.counted(fleet), done)
    return {
        "in_flight": in_flight,
        "actions": done,
        "per_second": run.per_second,
        "p50_ms": run.p50 * 1000,
        "p95_ms": run.p95 * 1000,
        "cpu_ms_per_action": {name: seconds * 1000 for name, seconds in cpu.items()},
        "publishes": counts["virtfleet_bus_published_total"],
        "writes": counts["virtfleet_store_writes_total"],
    }


def _show(console: Console, results: list[dict[str, Any]], memory: dict[str, float], floor: float) -> None:
    table = Table(title="Hard reboots, three test:/// hosts, over HTTP, to the event of the end")
    parts = list(results[0]["cpu_ms_per_action"])
    for name in (
        "in flight",
        "per second",
        "p50 ms",
        "p95 ms",
        "publishes",
        "writes",
        *(f"{p} ms" for p in parts),
        "sum ms",
    ):
        table.add_column(name, justify="right")
    for row in results:
        cpu = row["cpu_ms_per_action"]
        table.add_row(
            str(row["in_flight"]), f"{row['per_second']:.1f}", f"{row['p50_ms']:.1f}", f"{row['p95_ms']:.1f}",
            f"{row['publishes']:.1f}", f"{row['writes']:.1f}",
            *(f"{cpu[part]:.2f}" for part in parts), f"{sum(cpu.values()):.2f}",
        )  # fmt: skip
    console.print(table)
    best = results[-1]["per_second"]
    console.print(f"floor (bare loop, 100 in flight): {floor:.1f} a second; reached: {best / floor:.0%} of it")
    console.print(f"memory: {sum(memory.values()):.0f} MiB ({', '.join(f'{k} {v:.0f}' for k, v in memory.items())})")
