"""Server groups that would like to be together, or apart."""

from collections.abc import Mapping

import numpy as np

from virtfleet_scheduler.columns import HostColumns, Numbers, Rows
from virtfleet_scheduler.request import SOFT_AFFINITY, SOFT_ANTI_AFFINITY, Request
from virtfleet_scheduler.rules import Plain


class _Members(Plain):
    name: str
    policy: str
    sign: float
    floor: float | None = None
    least_ceiling: float | None = None

    def raw(self, hosts: HostColumns, request: Request, rows: Rows | None) -> Numbers | None:
        """Members per host, with the sign of the policy; nothing to say to other groups."""
        group = request.group
        if group is None or group.policy != self.policy or not group.members:
            return None
        counts = _counted(hosts, group.members) * self.sign
        return counts if rows is None else counts[rows]


class SoftAffinity(_Members):
    """The more members there are on the host, the better."""

    name, policy, sign = "soft_affinity", SOFT_AFFINITY, 1.0


class SoftAntiAffinity(_Members):
    """The fewer members there are on the host, the better."""

    name, policy, sign = "soft_anti_affinity", SOFT_ANTI_AFFINITY, -1.0


def _counted(hosts: HostColumns, members: Mapping[str, int]) -> Numbers:
    counts = np.zeros(len(hosts))
    for host, count in members.items():
        if host in hosts.row_of:
            counts[hosts.row_of[host]] = count
    return counts
