"""Is there enough left? Limits hold the allocation ratios and what is reserved, so room is what a claim may take."""

from collections.abc import Mapping
from typing import Any

from virtfleet_scheduler.columns import Bools, HostColumns
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain


class _Room(Plain):
    code: str
    kind: str

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Room for what the flavor needs."""
        needed = getattr(request, self.kind)
        if needed <= 0:
            return None
        is_enough: Bools = getattr(hosts, f"room_{self.kind}") >= needed
        return is_enough

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """What is needed and what is free."""
        return {
            "needed": getattr(request, self.kind),
            "free": float(getattr(hosts, f"room_{self.kind}")[row]),
            "limit": float(getattr(hosts, f"limits_{self.kind}")[row]),
        }


class EnoughVcpus(_Room):
    """vCPUs, of the host's times its allocation ratio."""

    code, kind = "not_enough_vcpus", "vcpus"


class EnoughRam(_Room):
    """MiB of RAM."""

    code, kind = "not_enough_ram", "ram_mb"


class EnoughDisk(_Room):
    """GiB of disk."""

    code, kind = "not_enough_disk", "disk_gb"
