"""Server groups: members together, or apart. The claim enforces the same rules; here they spare useless claims."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from virtfleet_scheduler.columns import Bools, HostColumns
from virtfleet_scheduler.filters.named import among
from virtfleet_scheduler.request import AFFINITY, ANTI_AFFINITY, Request
from virtfleet_scheduler.rules import Plain


class Affinity(Plain):
    """All members on one host: the one that the group is tied to, once it is."""

    code = "group_is_elsewhere"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """The host of the group, or any while it has none."""
        group = request.group
        if group is None or group.policy != AFFINITY or not group.tied_to:
            return None
        if len(group.tied_to) > 1:
            return np.zeros(len(hosts), dtype=np.bool_)
        return among(hosts, group.tied_to)

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """Where the group is."""
        group = request.group
        return {"group": group.id, "group_hosts": sorted(group.tied_to)} if group else {}


class AntiAffinity(Plain):
    """No more members on a host than the group's `max_server_per_host`."""

    code = "group_is_here"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Fewer members than may be."""
        group = request.group
        if group is None or group.policy != ANTI_AFFINITY or not group.members:
            return None
        return ~among(hosts, (host for host, count in group.members.items() if count >= group.max_per_host))

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """How many members there are, and may be."""
        group = request.group
        if group is None:
            return {}
        return {"group": group.id, "members": group.members.get(hosts.names[row], 0), "limit": group.max_per_host}
