"""Waiting until a fleet is ready: every service says so, and every host was heard from."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import httpx
from pymongo.database import Database
from pymongo.errors import PyMongoError

from virtfleet_local.layout import FleetFile
from virtfleet_local.processes import ManagedProcess

_TIMEOUT = 60.0


def is_ready(port: int) -> bool:
    """Whether the service on that port says that it is ready."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def await_services(file: FleetFile, running: Mapping[str, ManagedProcess], timeout: float = _TIMEOUT) -> None:
    """Wait until each is ready. Raises StartError, with the end of its log, for one that ends or takes too long."""
    for name, process in running.items():
        port = file.ports[name]
        process.wait_until(partial(is_ready, port), timeout)


def await_hosts(
    database: Database[dict[str, Any]],
    agents: Mapping[str, ManagedProcess],
    since: datetime,
    timeout: float = _TIMEOUT,
) -> None:
    """Wait until each host was heard from after `since` (by the database's clock)."""
    for host, agent in agents.items():
        heard = {"_id": host, "last_seen": {"$gte": since}}
        agent.wait_until(partial(_is_there, database, heard), timeout)


def _is_there(database: Database[dict[str, Any]], wanted: dict[str, Any]) -> bool:
    try:
        return database["hosts"].count_documents(wanted, limit=1) == 1
    except PyMongoError:
        return False
