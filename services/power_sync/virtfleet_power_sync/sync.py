"""Applies reports of hosts to the record: only differences are written, each by compare-and-set."""

import asyncio
from collections import Counter, defaultdict

import structlog
from virtfleet_common.bus import Delivery
from virtfleet_common.events import power_changed
from virtfleet_common.messages import GuestReport, Heartbeat, PowerDelta
from virtfleet_common.records import Instance, Sighting
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import PowerState
from virtfleet_common.store import Expect, Mismatch, Store

from virtfleet_power_sync.liveness import SeenHosts
from virtfleet_power_sync.reconcile import differs

log = structlog.get_logger()


class PowerSync:
    """The consumer of heartbeats and deltas: those of one host in the order of their arrival, hosts side by side.

    A report older than one that was read before is dropped.
    """

    def __init__(self, store: Store, relay: Relay, seen: SeenHosts, settings: PowerSyncSettings) -> None:
        self._store = store
        self._relay = relay
        self._seen = seen
        self._settings = settings
        self._missing: Counter[tuple[str, str]] = Counter()
        self._unknown: set[tuple[str, str]] = set()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def take(self, delivery: Delivery) -> None:
        """The consumer's handler."""
        is_heartbeat = delivery.key.endswith(".heartbeat")
        report: Heartbeat | PowerDelta = delivery.read(Heartbeat if is_heartbeat else PowerDelta)
        async with self._turns[report.host]:
            if isinstance(report, Heartbeat):
                await self._heartbeat(report)
            else:
                await self._delta(report)
        await delivery.settler.ack()

    async def _delta(self, delta: PowerDelta) -> None:
        if await self._seen.is_news(delta.host, delta.boot_id, delta.sequence):
            instance = await self._store.instances.get(delta.guest.instance_id)
            await self._apply(delta, instance, delta.guest)

    async def _heartbeat(self, heartbeat: Heartbeat) -> None:
        if not await self._seen.note(heartbeat):
            return
        if heartbeat.guests is None:
            log.warning("listing.failed", host=heartbeat.host, error=heartbeat.listing_error)
            return
        recorded = {one.id: one for one in await self._store.instances.find_on_host(heartbeat.host)}
        for guest in heartbeat.guests:
            await self._apply(heartbeat, recorded.get(guest.instance_id), guest)
        listed = {guest.instance_id for guest in heartbeat.guests}
        for id_, instance in recorded.items():
            await self._note_presence(heartbeat, instance, id_ in listed)

    async def _apply(self, report: Heartbeat | PowerDelta, instance: Instance | None, guest: GuestReport) -> None:
        if instance is None or instance.host != report.host:
            self._report_unknown(report.host, guest)
        elif is_newer(report, instance):
            await self._adopt(report, instance, guest.power_state)

    def _report_unknown(self, host: str, guest: GuestReport) -> None:
        if (host, guest.instance_id) not in self._unknown:
            self._unknown.add((host, guest.instance_id))
            log.warning("guest.unknown", host=host, instance_id=guest.instance_id, power_state=guest.power_state)

    async def _note_presence(self, report: Heartbeat, instance: Instance, is_listed: bool) -> None:
        """A guest that so many complete listings in a row do not show is missing: its power state is no state."""
        key = report.host, instance.id
        if is_listed or instance.task_state is not None or not is_newer(report, instance):
            del self._missing[key]
            return
        self._missing[key] += 1
        if self._missing[key] >= self._settings.missing_confirmations:
            await self._adopt(report, instance, PowerState.NOSTATE)

    async def _adopt(self, report: Heartbeat | PowerDelta, instance: Instance, power: PowerState) -> None:
        difference = differs(instance, power)
        if difference is None:
            return
        expect = Expect(task_states=frozenset({None}), host=instance.host, epoch=instance.epoch, rev=instance.rev)
        told = power_changed(instance, difference.word, after=difference.set)
        seen = Sighting(boot=report.boot_id, sequence=report.sequence).model_dump()
        fields = {**difference.set, "power_seen": seen}
        try:
            await self._relay.commit(instance.id, expect=expect, set=fields, effects=[told])
        except Mismatch as mismatch:
            log.info("power.not_adopted", instance_id=instance.id, why=str(mismatch))
        else:
            log.info("power.adopted", instance_id=instance.id, **difference.set)


def is_newer(report: Heartbeat | PowerDelta, instance: Instance) -> bool:
    """Whether a report was begun after the power state in the record was."""
    seen = instance.power_seen
    return seen is None or seen.boot != report.boot_id or report.sequence > seen.sequence
