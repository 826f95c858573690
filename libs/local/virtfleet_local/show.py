"""What the `virtfleet` command shows: processes, hosts, and events as they happen."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import psutil  # type: ignore[import-untyped]
from rich.table import Table
from rich.text import Text
from virtfleet_common.client import FleetClient, FleetEvent
from virtfleet_common.errors import BusUnavailable, Refused

from virtfleet_local.fleet import DATABASE_NAME, LocalFleet
from virtfleet_local.processes import ManagedProcess
from virtfleet_local.readiness import is_ready

_RETRY_DELAY = 1.0


def processes_table(fleet: LocalFleet) -> Table:
    """Every process: whether it runs and is ready, its pid and its memory."""
    table = Table("process", "state", "pid", "MiB", title="Processes")
    for name, process in (("rabbitmq", fleet.broker.process), ("mongod", fleet.database.process)):
        table.add_row(name, *_vital_signs(process, is_serving=True))
    for service in fleet.services():
        process = fleet.process(service.name)
        table.add_row(service.name, *_vital_signs(process, is_serving=is_ready(fleet.file.ports[service.name])))
    return table


def hosts_table(fleet: LocalFleet) -> Table:
    """Every host as the database knows it."""
    table = Table("host", "state", "last seen", "guests", "free vCPUs", "free MiB", title="Hosts")
    with fleet.connect() as client:
        for row in client[DATABASE_NAME]["hosts"].find().sort("_id"):
            free = row.get("free", {})
            amounts = [f"{free.get(kind, 0):.0f}" for kind in ("vcpus", "ram_mb")]
            table.add_row(row["_id"], row.get("state"), _ago(row.get("last_seen")), str(row.get("guests", 0)), *amounts)
    return table


async def events_of(amqp_url: str, pattern: str) -> AsyncIterator[Text]:
    """One line for each event that matches, for ever: a broker that went away is waited for."""
    while True:
        try:
            async with FleetClient(amqp_url) as client:
                async for event in client.events(pattern):
                    yield _line(event)
        except (BusUnavailable, Refused) as lost:
            # Refused as well: a wiped broker has no exchange until a service has declared it again.
            yield Text(f"-- {lost}; trying again", "yellow")
            await asyncio.sleep(_RETRY_DELAY)


def _line(event: FleetEvent) -> Text:
    when = (event.time or datetime.now(UTC)).astimezone().strftime("%H:%M:%S.%f")[:-3]
    style = "red" if ".error." in event.key else "green" if ".end." in event.key else ""
    facts = " ".join(f"{name}={value}" for name, value in event.data.items() if _is_telling(value))
    return Text.assemble((when, "dim"), " ", (event.key, style), " ", (facts, "dim"))


def _is_telling(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list)


def _vital_signs(process: ManagedProcess, *, is_serving: bool) -> tuple[str, str, str]:
    if (pid := process.pid) is None:
        return "[red]not running", "", ""
    state = "[green]ready" if is_serving else "[yellow]not ready"
    return state, str(pid), str(psutil.Process(pid).memory_info().rss >> 20)


def _ago(when: datetime | None) -> str:
    return "never" if when is None else f"{(datetime.now(UTC) - when).total_seconds():.0f} s ago"
