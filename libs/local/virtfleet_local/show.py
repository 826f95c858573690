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
from virtfleet_common.records import Host
from virtfleet_common.states import HostState, PowerState

from virtfleet_local.fleet import DATABASE_NAME, LocalFleet
from virtfleet_local.processes import ManagedProcess
from virtfleet_local.readiness import is_ready

_RETRY_DELAY = 1.0
_COLOURS = {HostState.UP: "green", HostState.UNKNOWN: "yellow", HostState.DOWN: "red"}
_STYLES = {"end": "green", "up": "green", "fenced": "yellow", "error": "red", "down": "red", "fence_failed": "red"}
NEWS = (
    "instance.#", "fleet.#", "host.*.up", "host.*.unknown", "host.*.down", "host.*.fenced", "host.*.fence_failed",
    "host.*.orphan",
)  # fmt: skip
"""Every event but heartbeats and what they are made of."""


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
    """Every host as the database knows it. How many guests a lost one has, nobody knows."""
    table = Table("host", "state", "last seen", "guests", "free vCPUs", "free MiB", title="Hosts")
    with fleet.connect() as client:
        for host in map(Host.model_validate, client[DATABASE_NAME]["hosts"].find().sort("_id")):
            guests = "?" if host.state is HostState.DOWN else str(host.guests)
            free = f"{host.free.vcpus:.0f}", f"{host.free.ram_mb:.0f}"
            table.add_row(host.id, standing(host), _ago(host.last_seen), guests, *free)
    return table


def standing(host: Host) -> Text:
    """The state of a host; and of a lost one, whether it is proven to be off, and why not."""
    words = [str(host.state)]
    if host.is_forced_down:
        words.append("forced")
    if not host.is_enabled:
        words.append("disabled")
    if host.state is HostState.DOWN:
        words.append(_fence(host))
    return Text(", ".join(words), _COLOURS[host.state])


def _fence(host: Host) -> str:
    if host.fence is not None:
        return f"fenced ({host.fence.proof})"
    error = host.fencing.error if host.fencing is not None else ""
    return f"not fenced: {error}" if error else "not fenced yet"


async def events_of(amqp_url: str, *patterns: str) -> AsyncIterator[Text]:
    """One line for each event that matches one of the patterns, for ever: a broker that went away is waited for."""
    _quieten_the_library()
    is_lost = False
    while True:
        try:
            async with FleetClient(amqp_url) as client, client.subscribed(*patterns) as events:
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
    style = next((style for word, style in _STYLES.items() if word in event.key.split(".")), "")
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
