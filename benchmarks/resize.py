"""Resize and confirm on `test:///` hosts: seconds and cost of a pair, alone and 32 at once."""

from typing import Any

from rich.console import Console
from rich.table import Table
from virtfleet_local.fleet import LocalFleet

from benchmarks import meters
from benchmarks.load import Load

LOADS = ((1, 60), (32, 640))
_SIZES = ("bench-larger", "bench-smaller")


async def measure(fleet: LocalFleet, console: Console) -> dict[str, Any]:
    """Each worker resizes an instance of its own to and fro, and confirms every time."""
    async with Load.on(fleet.file) as load:
        await load.make_flavors(_SIZES)
        instances = await load.create(max(in_flight for in_flight, _ in LOADS), _SIZES[-1])
        await load.repeat(instances, 8, 16, _pair)
        results = [await _one(fleet, load, instances, in_flight, total) for in_flight, total in LOADS]
    table = Table(title="Resize + confirm, three test:/// hosts, over HTTP, to the event of the end")
    for name in ("in flight", "per second", "p50 ms", "p95 ms", "CPU ms each"):
        table.add_column(name, justify="right")
    for row in results:
        numbers = (row["per_second"], row["p50_ms"], row["p95_ms"], row["cpu_ms"])
        table.add_row(str(row["in_flight"]), *(f"{number:.1f}" for number in numbers))
    console.print(table)
    return {"loads": results}


def _pair(number: int) -> list[dict[str, Any]]:
    return [{"resize": {"flavorRef": _SIZES[number % 2]}}, {"confirmResize": None}]


async def _one(fleet: LocalFleet, load: Load, instances: list[str], in_flight: int, total: int) -> dict[str, Any]:
    spent = meters.cpu_seconds(fleet)
    run = await load.repeat(instances, in_flight, total, _pair)
    cpu = meters.difference(spent, meters.cpu_seconds(fleet), len(run.latencies))
    return {
        "in_flight": in_flight,
        "per_second": run.per_second,
        "p50_ms": run.p50 * 1000,
        "p95_ms": run.p95 * 1000,
        "cpu_ms": sum(cpu.values()) * 1000,
    }
