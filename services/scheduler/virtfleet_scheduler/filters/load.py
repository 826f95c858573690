"""Is the host busy? Limits of guests and of builds and moves at once; the least that an aggregate says counts."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from virtfleet_common.settings import SchedulerSettings

from virtfleet_scheduler.columns import Bools, HostColumns, Numbers
from virtfleet_scheduler.request import Request


class _BelowLimit:
    code: str
    column: str
    key: str

    def __init__(self, limit: int | None) -> None:
        self._limit = limit

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Fewer than the limit."""
        limits = self._limits(hosts)
        if limits is None:
            return None
        is_below: Bools = getattr(hosts, self.column) < limits
        return is_below

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """How many there are, and may be."""
        limits = self._limits(hosts)
        return {
            "count": float(getattr(hosts, self.column)[row]),
            "limit": None if limits is None else float(np.broadcast_to(limits, len(hosts))[row]),
        }

    def _limits(self, hosts: HostColumns) -> Numbers | float | None:
        """Per host, or the same for all; None: no limit anywhere."""
        told = [one for one in hosts.aggregates if _is_number(one.metadata.get(self.key))]
        if not told:
            return None if self._limit is None else float(self._limit)
        limits = np.full(len(hosts), np.inf)
        for one in told:
            limits[one.rows] = np.minimum(limits[one.rows], float(one.metadata[self.key]))
        limits[np.isinf(limits)] = np.inf if self._limit is None else self._limit
        return limits


class FewIoOps(_BelowLimit):
    """Builds and moves under way on the host; aggregates say `max_io_ops_per_host`."""

    code, column, key = "too_many_io_ops", "io_ops", "max_io_ops_per_host"

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings.max_io_ops_per_host)


class FewInstances(_BelowLimit):
    """Guests that hold a place on the host; aggregates say `max_instances_per_host`."""

    code, column, key = "too_many_instances", "placed", "max_instances_per_host"

    def __init__(self, settings: SchedulerSettings) -> None:
        super().__init__(settings.max_instances_per_host)


def _is_number(text: str | None) -> bool:
    return text is not None and text.strip().isdigit()
