"""The availability zone: that of an aggregate of the host, or the one its agent reports."""

from collections.abc import Mapping
from typing import Any

from virtfleet_scheduler.columns import Bools, HostColumns
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain


class InZone(Plain):
    """The host is in the zone that was asked for."""

    code = "zone_differs"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """In the zone, if one was asked for."""
        if request.availability_zone is None:
            return None
        is_there: Bools = hosts.zones == hosts.words.find(request.availability_zone)
        return is_there

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """Both zones."""
        return {"zone": hosts.words.texts[hosts.zones[row]], "wanted": request.availability_zone}
