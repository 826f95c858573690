"""Which hosts are up: their last_seen, by the receiver's clock, judged every second."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog
from virtfleet_common.bus import EVENTS, Bus, Outgoing, try_publish
from virtfleet_common.messages import Event, Heartbeat, HostChanged, MassLoss
from virtfleet_common.ports import Clock
from virtfleet_common.records import Host
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Store
from virtfleet_common.store.hosts import as_lost

from virtfleet_power_sync.watch import Watch

log = structlog.get_logger()


class SeenHosts:
    """Heartbeats as they come in: the newest of each host, gathered into one bulk write."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest: dict[str, tuple[str, int]] = {}
        self._unwritten: dict[str, Mapping[str, Any]] = {}

    async def is_news(self, host: str, boot: str, sequence: int) -> bool:
        """Whether a report is of the host's current boot, and newer than its newest heartbeat."""
        newest = self._newest.get(host)
        if newest is not None and newest[0] == boot:
            return sequence > newest[1]
        recorded = await self._store.hosts.get(host)
        return recorded is not None and recorded.boot_id == boot

    async def note(self, heartbeat: Heartbeat) -> bool:
        """Remember a heartbeat for the next write; False if it is an old one."""
        if not await self.is_news(heartbeat.host, heartbeat.boot_id, heartbeat.sequence):
            return False
        self._newest[heartbeat.host] = (heartbeat.boot_id, heartbeat.sequence)
        fields = {
            "boot_id": heartbeat.boot_id,
            "sequence": heartbeat.sequence,
            "is_responsive": heartbeat.is_responsive,
        }
        if heartbeat.guests is not None:
            fields["guests"] = len(heartbeat.guests)
        self._unwritten[heartbeat.host] = fields
        return True

    def forget(self, host: str) -> None:
        """The host is lost: what is still to come of that boot is no news."""
        self._newest.pop(host, None)
        self._unwritten.pop(host, None)

    async def write(self) -> None:
        """Write what came in since the last call."""
        unwritten, self._unwritten = self._unwritten, {}
        await self._store.hosts.put_seen(unwritten)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The state each host should have. `is_suspect`: so many fell silent together that none of them is declared down:
    it may be our own network that failed."""

    states: Mapping[str, HostState]
    is_suspect: bool = False


def judge(hosts: Sequence[Host], now: datetime, listening_since: datetime, settings: PowerSyncSettings) -> Judgement:
    """What their silence says of the hosts: none is declared down before it could be heard for `host_down_after`
    seconds. One that fell silent alone is never too many."""
    judged = {host.id: _state(host, now, listening_since, settings) for host in hosts}
    present = [host for host in hosts if host.state is not HostState.DOWN and not host.is_forced_down]
    silent = [host for host in present if judged[host.id] is not HostState.UP]
    if len(silent) <= 1 or len(silent) < settings.mass_loss_fraction * len(present):
        return Judgement(judged)
    return Judgement(judged | {host.id: HostState.UNKNOWN for host in silent}, is_suspect=True)


def _state(host: Host, now: datetime, listening_since: datetime, settings: PowerSyncSettings) -> HostState:
    if host.is_forced_down or host.boot_id is None:
        return HostState.DOWN
    silence = (now - host.last_seen).total_seconds() if host.last_seen else settings.host_down_after
    listened = (now - listening_since).total_seconds()
    if min(silence, listened) >= settings.host_down_after:
        return HostState.DOWN
    return HostState.UNKNOWN if silence >= settings.host_unknown_after else HostState.UP


class Liveness:
    """Writes what `judge` says, and tells every change of a host's state, whoever made it.

    While the broker is away, or so many are silent that it may be our own network, nobody counts as listened to.
    """

    def __init__(self, store: Store, bus: Bus, clock: Clock, seen: SeenHosts, settings: PowerSyncSettings) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._seen = seen
        self._settings = settings
        self._watch = Watch(clock.now(), settings.host_unknown_after)
        self._is_alarmed = False

    async def check(self) -> list[Host]:
        """One round: every host, as judged. A change is written, and told, by compare-and-set, so only one replica does
        it."""
        hosts, now = await self._store.hosts.find(), self._clock.now()
        self._watch.look(now)
        if not self._bus.is_connected:
            self._watch.begin_anew(now)
        judgement = judge(hosts, now, self._watch.since, self._settings)
        if judgement.is_suspect:
            self._watch.begin_anew(now)
        await self._alarm(judgement)
        return [await self._settled(host, judgement.states[host.id]) for host in hosts]

    async def _settled(self, host: Host, state: HostState) -> Host:
        if state is not host.state:
            fields = as_lost(self._clock.now()) if state is HostState.DOWN else {"state": state}
            was = {"state": host.state, "last_seen": host.last_seen, "boot_id": host.boot_id}
            if await self._store.hosts.set_fields(host.id, fields, was=was):
                log.warning("host.changed", host=host.id, before=host.state, after=state)
                host = host.model_copy(update=fields)
        if host.state is HostState.DOWN:
            self._seen.forget(host.id)
        return await self._told(host)

    async def _told(self, host: Host) -> Host:
        told = {"told": host.state}
        if host.told is host.state or not await self._store.hosts.set_fields(host.id, told, was={"told": host.told}):
            return host
        change = HostChanged(host=host.id, before=host.told, after=host.state, last_seen=host.last_seen)
        await self._publish(f"host.{host.id}.{host.state}", f"virtfleet.host.{host.state}", change)
        return host.model_copy(update=told)

    async def _alarm(self, judgement: Judgement) -> None:
        """Said once, when it begins."""
        if judgement.is_suspect and not self._is_alarmed:
            silent = sorted(host for host, state in judgement.states.items() if state is HostState.UNKNOWN)
            log.error("fleet.mass_loss", hosts=silent)
            await self._publish("fleet.mass_loss", "virtfleet.fleet.mass_loss", MassLoss(hosts=silent))
        self._is_alarmed = judgement.is_suspect

    async def _publish(self, key: str, type_: str, data: Event) -> None:
        await try_publish(self._bus, Outgoing(EVENTS, key, type_, data, "virtfleet/power-sync"))
