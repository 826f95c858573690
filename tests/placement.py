"""What tests of placement say: hosts as columns, requests, and a decision with the default rules."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from virtfleet_common.records import Aggregate
from virtfleet_common.settings import SchedulerSettings
from virtfleet_common.store.host_feed import as_change
from virtfleet_scheduler.columns import HostColumns
from virtfleet_scheduler.request import Group, Request
from virtfleet_scheduler.rules import Filter, Weigher

ROOM = {"vcpus": 8.0, "ram_mb": 8192.0, "disk_gb": 100.0}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def a_fleet(**hosts: dict[str, Any]) -> HostColumns:
    """Hosts by name, each with what sets it apart; free resources may be given as `vcpus=`, `ram_mb=`, `disk_gb=`."""
    columns = HostColumns(seed=1)
    columns.replace_all(as_change(a_row(name, **fields)) for name, fields in hosts.items())
    return columns


def a_row(name: str, **fields: Any) -> dict[str, Any]:
    """A host's document."""
    free = {kind: float(fields.pop(kind, most)) for kind, most in ROOM.items()}
    return {"_id": name, "free": free, "limits": ROOM, "total": ROOM, "state": "up", "arch": "x86_64", **fields}


def an_aggregate(name: str, hosts: Sequence[str], **metadata: str) -> Aggregate:
    """An aggregate; metadata keys with colons or dots are given as a dictionary's."""
    return Aggregate(
        id=1, uuid="u", name=name, hosts=hosts, metadata=metadata, created_at=NOW, updated_at=NOW
    )  # fmt: skip


def a_request(**fields: Any) -> Request:
    """One vCPU, 1 GiB, 10 GiB."""
    return Request(**{"vcpus": 1, "ram_mb": 1024, "disk_gb": 10, "project_id": "p1", "flavor_name": "small"} | fields)


def a_group(policy: str, members: dict[str, int] | None = None, **fields: Any) -> Group:
    """A server group with members on hosts."""
    return Group("g", policy, members=members or {}, **fields)


def passing(kind: type[Any], hosts: HostColumns, request: Request, **settings: Any) -> set[str]:
    """The names that a filter lets pass."""
    rule: Filter = kind(SchedulerSettings(**settings))
    mask = rule.passes(hosts, request)
    for row in range(len(hosts)):
        if mask is not None and not mask[row]:
            assert isinstance(dict(rule.facts(hosts, request, row)), dict)
    return set(hosts.names) if mask is None else {hosts.names[row] for row in np.flatnonzero(mask)}


def raw(kind: type[Any], hosts: HostColumns, request: Request) -> dict[str, float] | None:
    """What a weigher says of each host."""
    weigher: Weigher = kind(SchedulerSettings())
    values = weigher.raw(hosts, request, None)
    if values is None:
        return None
    rows = np.arange(len(hosts))
    again = weigher.raw(hosts, request, rows)
    assert again is not None
    assert again.tolist() == values.tolist()
    return dict(zip(hosts.names, values.tolist(), strict=True))
