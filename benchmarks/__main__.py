"""`python -m benchmarks`: every benchmark, its figures as tables and in bench-results/<name>.json."""

import asyncio
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from virtfleet_local.database import Database
from virtfleet_local.fleet import LocalFleet

from benchmarks import evacuation, placement, power_sync, reboot, resize

RESULTS = Path("bench-results")


def main() -> None:
    """Run the benchmarks on a fleet of their own."""
    console = Console(width=200)
    with tempfile.TemporaryDirectory(prefix="virtfleet-bench-") as folder:
        with Database(Path(folder, "placement")) as database:
            _write("placement", asyncio.run(placement.measure(database.url, console)))
        _write("power_sync", asyncio.run(power_sync.measure(Path(folder, "power-sync"), console)))
        _write("evacuation", asyncio.run(evacuation.measure(Path(folder, "evacuation"), console)))
        with LocalFleet(Path(folder), hosts=3, hypervisor="test") as fleet:
            _write("reboot", asyncio.run(reboot.measure(fleet, console)))
            _write("resize", asyncio.run(resize.measure(fleet, console)))


def _write(name: str, figures: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    stamped = {"measured_at": datetime.now(UTC).isoformat(), **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(stamped, indent=2) + "\n")


if __name__ == "__main__":
    main()
