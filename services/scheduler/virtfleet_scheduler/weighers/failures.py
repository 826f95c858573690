"""Hosts on which guests could not be built lately are left for last, and forgiven with time."""

from virtfleet_scheduler.columns import HostColumns, Numbers, Rows
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain


class RecentFailures(Plain):
    """Failed builds, each worth half after every half-life; the usual multiplier is negative.

    Nova normalises to the worst host of the moment, so that one failure of last month weighs as much as one of now.
    Here the range reaches to 1 at least: what is worth a hundredth of a failure is weighed as a hundredth.
    """

    name = "failures"
    floor: float | None = 0.0
    least_ceiling: float | None = 1.0

    def raw(self, hosts: HostColumns, request: Request, rows: Rows | None) -> Numbers | None:
        """What the failures are worth now; nothing to say when there are none."""
        if not hosts.failures.any():
            return None
        values = hosts.failures if rows is None else hosts.failures.take(rows)
        return values * hosts.failure_factor()
