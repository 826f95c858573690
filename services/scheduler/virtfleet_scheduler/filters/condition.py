"""Is the host there and willing?"""

from collections.abc import Mapping
from typing import Any

from virtfleet_scheduler.columns import Bools, HostColumns
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain


class HostUp(Plain):
    """Heartbeats arrive, and the hypervisor answers."""

    code = "host_not_up"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Up and responsive."""
        return hosts.is_up

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """Which of both it is not."""
        return {"state": hosts.facts(row)["state"], "is_responsive": bool(hosts.is_responsive[row])}


class HostEnabled(Plain):
    """An admin has not disabled the host."""

    code = "host_disabled"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Enabled."""
        return hosts.is_enabled

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """Nothing to add."""
        return {"is_enabled": False}
