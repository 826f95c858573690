"""power_sync: keeps the record true, and overdue work moving."""

from contextlib import AsyncExitStack
from functools import partial

from virtfleet_common import plugins
from virtfleet_common.bus import EVENTS, QueueSpec
from virtfleet_common.clock import SystemClock
from virtfleet_common.service import backbone, repeat, run, until_stopped
from virtfleet_common.settings import PowerSyncSettings

from virtfleet_power_sync.adopt import Adopter
from virtfleet_power_sync.books import ClaimAudit
from virtfleet_power_sync.evacuation import Evacuator
from virtfleet_power_sync.fencing.fencer import Fencer
from virtfleet_power_sync.host_loss import HostLoss
from virtfleet_power_sync.liveness import Liveness, SeenHosts
from virtfleet_power_sync.lost_work import LostWork
from virtfleet_power_sync.overdue import Overdue
from virtfleet_power_sync.quotas import QuotaKeeper
from virtfleet_power_sync.strangers import Strangers
from virtfleet_power_sync.sync import PowerSync
from virtfleet_power_sync.view import RecordView

_REPORTS_KEPT = 60.0
_MOST_REPORTS = 100_000
REPORTS = QueueSpec(
    "virtfleet.power-sync",
    [(EVENTS, "host.*.heartbeat"), (EVENTS, "host.*.delta")],
    prefetch=256,
    ttl=_REPORTS_KEPT,
    max_length=_MOST_REPORTS,
)


async def serve(settings: PowerSyncSettings) -> None:
    """Take reports and sweep until stopped."""
    clock = SystemClock()
    fence = plugins.make("virtfleet.fences", settings.fencing, settings)
    async with backbone("power-sync", settings) as base, AsyncExitStack() as stack:
        fencer = Fencer(fence, base.store, base.bus, clock, settings, base.boot)
        stack.push_async_callback(fencer.stop)
        seen = SeenHosts(base.store)
        view = RecordView(base.store)
        adopter = Adopter(base.store, base.relay, clock, settings)
        sync = PowerSync(base.store, view, seen, adopter, Strangers(base.bus), settings)
        overdue = Overdue(base.store, base.relay, clock, settings)
        books = ClaimAudit(base.store, settings)
        host_loss = HostLoss(
            Liveness(base.store, base.bus, clock, seen, settings),
            fencer,
            LostWork(base.store, base.relay, settings),
            Evacuator(base.store, base.relay, clock, settings),
        )
        quotas = QuotaKeeper(base.store, settings)
        async with base.bus.consume(REPORTS, sync.take):
            await until_stopped(
                view.follow(),
                repeat(settings.host_write_interval, seen.write),
                repeat(settings.liveness_interval, host_loss.check),
                repeat(settings.audit_interval, books.check),
                repeat(settings.resend_interval, overdue.deliver_unsent),
                repeat(settings.resend_interval, overdue.send_again),
                repeat(settings.quota_audit_interval, quotas.check),
                repeat(settings.confirm_interval, overdue.confirm_due),
            )


def main() -> None:
    """The command `virtfleet-power-sync`."""
    settings = PowerSyncSettings()
    run("power-sync", settings, partial(serve, settings))


if __name__ == "__main__":
    main()
