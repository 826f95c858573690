"""The more is free, the better: guests spread. A negative multiplier stacks them."""

from virtfleet_scheduler.columns import HostColumns, Numbers, Rows
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain


class _Column(Plain):
    name: str
    column: str
    floor: float | None = 0.0
    least_ceiling: float | None = None

    def raw(self, hosts: HostColumns, request: Request, rows: Rows | None) -> Numbers | None:
        """The column itself."""
        values: Numbers = getattr(hosts, self.column)
        return values if rows is None else values.take(rows)


class FreeRam(_Column):
    """MiB of RAM that may still be claimed."""

    name, column = "ram", "room_ram_mb"


class FreeVcpus(_Column):
    """vCPUs that may still be claimed."""

    name, column = "vcpus", "room_vcpus"


class FreeDisk(_Column):
    """GiB of disk that may still be claimed."""

    name, column = "disk", "room_disk_gb"


class IoOps(_Column):
    """Builds and moves under way; the usual multiplier is negative."""

    name, column = "io_ops", "io_ops"


class Instances(_Column):
    """Guests that hold a place; the usual multiplier is 0."""

    name, column, floor = "instances", "placed", None
