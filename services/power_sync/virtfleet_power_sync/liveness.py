"""Which hosts are up: their last_seen, by the receiver's clock, judged every second."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import structlog
from virtfleet_common.bus import EVENTS, Bus, Outgoing
from virtfleet_common.errors import Faulty
from virtfleet_common.messages import Heartbeat
from virtfleet_common.ports import Clock
from virtfleet_common.records import Host
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Store

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

    async def write(self) -> None:
        """Write what came in since the last call."""
        unwritten, self._unwritten = self._unwritten, {}
        await self._store.hosts.put_seen(unwritten)


def judge(hosts: Sequence[Host], now: datetime, settings: PowerSyncSettings) -> dict[str, HostState]:
    """The state each host should have. When too many are lost together, none is judged worse than unknown."""
    judged = {host.id: _state(host, now, settings) for host in hosts}
    lost = [host for host in hosts if judged[host.id] is not HostState.UP and not host.is_forced_down]
    fresh = [host for host in lost if host.state is not HostState.DOWN]
    if len(hosts) > 1 and len(lost) > settings.mass_loss_fraction * len(hosts):
        judged |= {host.id: HostState.UNKNOWN for host in fresh}
    return judged


def _state(host: Host, now: datetime, settings: PowerSyncSettings) -> HostState:
    if host.is_forced_down:
        return HostState.DOWN
    silence = (now - host.last_seen).total_seconds() if host.last_seen else settings.host_down_after
    if silence >= settings.host_down_after:
        return HostState.DOWN
    return HostState.UNKNOWN if silence >= settings.host_unknown_after else HostState.UP


class Liveness:
    """Writes what `judge` says, and tells it."""

    def __init__(self, store: Store, bus: Bus, clock: Clock, settings: PowerSyncSettings) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._settings = settings

    async def check(self) -> None:
        """One round over all hosts. A change is written by compare-and-set, so only one replica tells it."""
        hosts = await self._store.hosts.find()
        judged = judge(hosts, self._clock.now(), self._settings)
        for host in hosts:
            state = judged[host.id]
            if state is host.state:
                continue
            if await self._store.hosts.set_fields(host.id, {"state": state}, was={"state": host.state}):
                log.warning("host.changed", host=host.id, before=host.state, after=state)
                await self._tell(host, state)

    async def _tell(self, host: Host, state: HostState) -> None:
        data = {"host": host.id, "before": host.state, "after": state, "last_seen": str(host.last_seen)}
        message = Outgoing(EVENTS, f"host.{host.id}.{state}", f"virtfleet.host.{state}", data, "virtfleet/power-sync")
        try:
            await self._bus.publish(message)
        except Faulty as error:
            log.warning("publish.failed", key=message.key, error=error.message)
