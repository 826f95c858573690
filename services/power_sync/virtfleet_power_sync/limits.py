"""How much is done to lost hosts without a person: a fleet that loses host after host may be misjudged as a whole."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from virtfleet_common.records import Host
from virtfleet_common.settings import PowerSyncSettings


def within_limit(lost: Sequence[Host], now: datetime, settings: PowerSyncSettings) -> list[Host]:
    """Those of the hosts that may be dealt with by themselves: forced down by an admin, lost long ago, or among the
    first `auto_loss_limit` that were lost within `auto_loss_window`."""
    since = now - timedelta(seconds=settings.auto_loss_window)
    fresh = [host for host in lost if not host.is_forced_down and host.lost_at is not None and host.lost_at > since]
    too_many = {host.id for host in sorted(fresh, key=_lost_at)[settings.auto_loss_limit :]}
    return [host for host in lost if host.id not in too_many]


def _lost_at(host: Host) -> tuple[datetime | None, str]:
    return host.lost_at, host.id
