"""What processes cost, and what services count."""

from collections.abc import Mapping

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families
from virtfleet_local.fleet import LocalFleet

COUNTERS = ("virtfleet_bus_published_total", "virtfleet_store_writes_total")


def cpu_seconds(fleet: LocalFleet) -> dict[str, float]:
    """CPU seconds since their start: each service (agents together), the broker and the database."""
    spent: dict[str, float] = {}
    for name, pid in _pids(fleet).items():
        kind = "agents" if name.startswith("host-") else name
        times = psutil.Process(pid).cpu_times()
        spent[kind] = spent.get(kind, 0.0) + times.user + times.system
    return spent


def memory_mib(fleet: LocalFleet) -> dict[str, float]:
    """Proportional set size of each part, in MiB: shared pages are counted once among those that share them."""
    return {name: psutil.Process(pid).memory_full_info().pss / 2**20 for name, pid in _pids(fleet).items()}


def counted(fleet: LocalFleet) -> dict[str, float]:
    """The services' own counters, summed: confirmed publishes and confirmed write commands."""
    total = dict.fromkeys(COUNTERS, 0.0)
    for port in fleet.file.ports.values():
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10, trust_env=False).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in total:
                    total[sample.name] += sample.value
    return total


def difference(before: Mapping[str, float], after: Mapping[str, float], per: int) -> dict[str, float]:
    """What was spent between two readings, for each of `per` actions."""
    return {name: (after[name] - before[name]) / per for name in after}


def _pids(fleet: LocalFleet) -> dict[str, int]:
    named = {name: fleet.process(name).pid for name in fleet.file.ports}
    named |= {"rabbitmq": fleet.broker.process.pid, "mongod": fleet.database.process.pid}
    return {name: pid for name, pid in named.items() if pid}
