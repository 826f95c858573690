"""Hosts that are named: excluded ones, and those of the hints same_host and different_host."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from virtfleet_scheduler.columns import Bools, HostColumns
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain


def among(hosts: HostColumns, names: Iterable[str]) -> Bools:
    """Which hosts have one of these names."""
    found = np.zeros(len(hosts), dtype=np.bool_)
    found[[hosts.row_of[name] for name in names if name in hosts.row_of]] = True
    return found


class NotExcluded(Plain):
    """The host was not tried before by this action, and is not to be left."""

    code = "host_tried_before"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Not among the excluded."""
        return ~among(hosts, request.excluded) if request.excluded else None

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """That it is excluded."""
        return {"tried": True}


class SameHost(Plain):
    """The hint `same_host`: where one of the named instances is."""

    code = "not_the_same_host"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Among the hosts of those instances."""
        return None if request.same_host is None else among(hosts, request.same_host)

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """Where they are."""
        return {"wanted": sorted(request.same_host or ())}


class DifferentHost(Plain):
    """The hint `different_host`: where none of the named instances is."""

    code = "not_a_different_host"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Not among the hosts of those instances."""
        return ~among(hosts, request.different_host) if request.different_host else None

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """Where they are."""
        return {"unwanted": sorted(request.different_host or ())}
