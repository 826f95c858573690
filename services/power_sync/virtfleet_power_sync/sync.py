"""Applies reports of hosts to the record: only differences are read and written, each by compare-and-set.

Good path: a listing and the record of its host are the same as when they last agreed, and nothing is done. Otherwise
the listing is compared with the view of the record, and whatever differs is decided on the record itself. Bad path: the
view is behind, or a write lost; the host has not agreed then, and its next listing is compared again. Why it is safe:
the view decides only what to look at, never what to write.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping

import structlog
from virtfleet_common.bus import Delivery
from virtfleet_common.messages import GuestReport, Heartbeat, PowerDelta
from virtfleet_common.records import Instance
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import PowerState, VmState
from virtfleet_common.store import Store
from virtfleet_common.store.instance_feed import Recorded

from virtfleet_power_sync.adopt import Adopter
from virtfleet_power_sync.liveness import SeenHosts
from virtfleet_power_sync.reconcile import differs, is_newer
from virtfleet_power_sync.strangers import Strangers
from virtfleet_power_sync.view import RecordView

log = structlog.get_logger()
Listing = Mapping[str, GuestReport]


class PowerSync:
    """The consumer of heartbeats and deltas: those of one host in the order of their arrival, hosts side by side.

    A report older than one that was read before is dropped.
    """

    def __init__(
        self, store: Store, view: RecordView, seen: SeenHosts, adopter: Adopter, strangers: Strangers,
        settings: PowerSyncSettings,
    ) -> None:  # fmt: skip
        self._store = store
        self._view = view
        self._seen = seen
        self._adopter = adopter
        self._strangers = strangers
        self._settings = settings
        self._agreed: dict[str, tuple[str, int, Mapping[str, PowerState]]] = {}
        self._missing: dict[str, Mapping[str, tuple[Recorded, int]]] = {}
        self._counted: dict[str, tuple[int, int]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def take(self, delivery: Delivery) -> None:
        """The consumer's handler."""
        is_heartbeat = delivery.key.endswith(".heartbeat")
        report: Heartbeat | PowerDelta = delivery.read(Heartbeat if is_heartbeat else PowerDelta)
        async with self._turns[report.host]:
            if isinstance(report, Heartbeat):
                await self._heartbeat(report)
            elif await self._seen.is_news(report.host, report.boot_id, report.sequence):
                await self._apply(report, report.guest)
        await delivery.settler.ack()

    async def _heartbeat(self, heartbeat: Heartbeat) -> None:
        if not await self._seen.note(heartbeat):
            return
        if heartbeat.guests is None:
            log.warning("listing.failed", host=heartbeat.host, error=heartbeat.listing_error)
        elif self._view.is_loaded:
            await self._compare_if_changed(heartbeat, heartbeat.guests)

    async def _compare_if_changed(self, heartbeat: Heartbeat, guests: Collection[GuestReport]) -> None:
        host, version = heartbeat.host, self._view.version(heartbeat.host)
        looked_at = heartbeat.boot_id, version, {guest.instance_id: guest.power_state for guest in guests}
        if self._agreed.get(host) == looked_at:
            return
        self._agreed.pop(host, None)
        if await self._compare(heartbeat, {guest.instance_id: guest for guest in guests}):
            self._agreed[host] = looked_at

    async def _compare(self, heartbeat: Heartbeat, listing: Listing) -> bool:
        """Whether listing and record agree already; what differs is written."""
        recorded = dict(self._view.on_host(heartbeat.host))
        self._compare_counts(heartbeat.host, len(listing), len(recorded))
        missing = self._count_missing(heartbeat, listing, recorded)
        differing = [id_ for id_, guest in listing.items() if _is_other(recorded.get(id_), guest)]
        strange = listing.keys() - recorded.keys()
        self._strangers.keep(heartbeat, strange)
        unknown = [id_ for id_ in strange if not self._strangers.knows(heartbeat, id_)]
        for id_ in (*differing, *unknown):
            await self._apply(heartbeat, listing[id_])
        for id_, times in missing.items():
            if times >= self._settings.missing_confirmations:
                await self._miss(heartbeat, id_)
        return not (differing or unknown or missing)

    async def _apply(self, report: Heartbeat | PowerDelta, guest: GuestReport) -> None:
        instance = await self._store.instances.get(guest.instance_id)
        if instance is not None and instance.host == report.host:
            await self._adopter.adopt(report, instance, guest.power_state)
        if not _lives_on(report.host, instance):
            await self._strangers.note(report, guest, instance)

    async def _miss(self, heartbeat: Heartbeat, instance_id: str) -> None:
        instance = await self._store.instances.get(instance_id)
        if instance is not None and _lives_on(heartbeat.host, instance):
            await self._adopter.adopt(heartbeat, instance, None)

    def _count_missing(
        self, heartbeat: Heartbeat, listing: Listing, recorded: Mapping[str, Recorded]
    ) -> Mapping[str, int]:
        """How many complete listings in a row did not show a guest, while nothing was written of it."""
        before = self._missing.pop(heartbeat.host, {})
        now: dict[str, tuple[Recorded, int]] = {}
        for id_ in recorded.keys() - listing.keys():
            one = recorded[id_]
            if differs(one, None):
                was, times = before.get(id_, (one, 0))
                counts = is_newer(one, heartbeat.boot_id, heartbeat.sequence)
                now[id_] = one, (times if was == one else 0) + counts
        if now:
            self._missing[heartbeat.host] = now
        return {id_: times for id_, (_, times) in now.items()}

    def _compare_counts(self, host: str, listed: int, recorded: int) -> None:
        """Say once that host and record count differently, and again when the numbers change."""
        counted = listed, recorded
        if self._counted.pop(host, None) != counted and listed != recorded:
            log.warning("guests.counted", host=host, listed=listed, recorded=recorded)
        if listed != recorded:
            self._counted[host] = counted


def _is_other(recorded: Recorded | None, guest: GuestReport) -> bool:
    return recorded is not None and differs(recorded, guest.power_state) is not None


def _lives_on(host: str, instance: Instance | None) -> bool:
    """Whether the record places an instance on a host, and has not deleted it."""
    return instance is not None and instance.host == host and instance.vm_state is not VmState.DELETED
