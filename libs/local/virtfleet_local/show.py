"""What the `virtfleet` command shows: processes, hosts, and events as they happen."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from types import NoneType
from typing import Any

import psutil
from rich.table import Table
from rich.text import Text
from virtfleet_common.client import FleetClient, FleetEvent
from virtfleet_common.errors import BusUnavailable, Refused
from virtfleet_common.states import PowerState

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
    _quieten_the_library()
    is_lost = False
    while True:
        try:
            async with FleetClient(amqp_url) as client, client.subscribed(pattern) as events:
                if is_lost:
                    yield Text("-- the broker is back", "yellow")
                is_lost = False
                async for event in events:
                    yield line_of(event)
        except (BusUnavailable, Refused) as lost:
            # Refused as well: a wiped broker has no exchange until a service has declared it again.
            if not is_lost:
                yield Text(f"-- {lost}. Waiting for the broker", "yellow")
            is_lost = True
            await asyncio.sleep(_RETRY_DELAY)


def line_of(event: FleetEvent) -> Text:
    """An event in one line: when, what, to whom, and what came of it."""
    when = (event.time or datetime.now(UTC)).astimezone().strftime("%H:%M:%S.%f")[:-3]
    style = "red" if ".error." in event.key else "green" if ".end." in event.key else ""
    facts = _of_instance(event.data) if "after" in event.data and "name" in event.data else _of_others(event.data)
    return Text.assemble((when, "dim"), " ", (event.key, style), " ", (facts, "dim"))


def _of_instance(data: Mapping[str, Any]) -> str:
    after, fault = data["after"], data.get("fault")
    where = f" on {data['host']}" if data.get("host") else ""
    why = f": {fault['message']}" if fault else ""
    power = PowerState(after["power_state"]).name.lower()
    return f"{data['name']}{where} is {after['vm_state']}, {after['task_state'] or 'idle'}, {power}{why}"


def _of_others(data: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in data.items() if not isinstance(value, dict | list | NoneType))


def _quieten_the_library() -> None:
    """The AMQP library logs a traceback for every lost connection; here the loss is told in one line."""
    for name in ("aiormq", "aio_pika"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _vital_signs(process: ManagedProcess, *, is_serving: bool) -> tuple[str, str, str]:
    if (pid := process.pid) is None:
        return "[red]not running", "", ""
    state = "[green]ready" if is_serving else "[yellow]not ready"
    return state, str(pid), str(psutil.Process(pid).memory_info().rss >> 20)


def _ago(when: datetime | None) -> str:
    return "never" if when is None else f"{(datetime.now(UTC) - when).total_seconds():.0f} s ago"
