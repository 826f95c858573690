"""`python -m benchmarks [NAME ...]`: the benchmarks, their figures as tables and in bench-results/<name>.json."""

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from virtfleet_local.database import Database
from virtfleet_local.fleet import LocalFleet

from benchmarks import evacuation, placement, power_sync, reboot, resize

RESULTS = Path("bench-results")
Figures = dict[str, Any]
Benchmark = Callable[[Path, Console], Figures]


def main() -> None:
    """Run the benchmarks that the command line names, each on a fleet of its own; all of them if it names none."""
    console, names = Console(width=200), sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"There is no benchmark {', '.join(unknown)}: there are {', '.join(BENCHMARKS)}.")
    for name in names:
        with tempfile.TemporaryDirectory(prefix="virtfleet-bench-") as folder:
            _write(name, BENCHMARKS[name](Path(folder), console))


def _placement(folder: Path, console: Console) -> Figures:
    with Database(folder) as database:
        return asyncio.run(placement.measure(database.url, console))


def _on_fleet(measure: Callable[[LocalFleet, Console], Coroutine[Any, Any, Figures]]) -> Benchmark:
    def run(folder: Path, console: Console) -> Figures:
        with LocalFleet(folder, hosts=3, hypervisor="test") as fleet:
            return asyncio.run(measure(fleet, console))

    return run


BENCHMARKS: Mapping[str, Benchmark] = {
    "placement": _placement,
    "power_sync": lambda folder, console: asyncio.run(power_sync.measure(folder, console)),
    "evacuation": lambda folder, console: asyncio.run(evacuation.measure(folder, console)),
    "reboot": _on_fleet(reboot.measure),
    "resize": _on_fleet(resize.measure),
}


def _write(name: str, figures: Figures) -> None:
    RESULTS.mkdir(exist_ok=True)
    stamped = {"measured_at": datetime.now(UTC).isoformat(), **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(stamped, indent=2) + "\n")


if __name__ == "__main__":
    main()
