"""Automatic evacuation: the guests of a lost and fenced host go elsewhere without being told to.

Which: `auto_evacuate` says it for the fleet, an instance's metadata `ha` (true, false) for itself. In what order: by
its metadata `ha_priority`, highest first. How many at once: `evacuation_parallelism`. One that found no shelter is
tried again after `evacuation_retry`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import uuid4

import structlog
from virtfleet_common import moves
from virtfleet_common.actions import ACTIONS
from virtfleet_common.beginning import begin, begun
from virtfleet_common.ports import Clock
from virtfleet_common.records import EVACUATION, Host, Instance
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Mismatch, Store

from virtfleet_power_sync.limits import within_limit

log = structlog.get_logger()
USER = "virtfleet"
"""The user of actions that nobody asked for."""


class Evacuator:
    """See the module's text. Safe in several replicas: each evacuation begins by compare-and-set."""

    def __init__(self, store: Store, relay: Relay, clock: Clock, settings: PowerSyncSettings) -> None:
        self._store = store
        self._relay = relay
        self._clock = clock
        self._settings = settings
        self._not_before: dict[str, datetime] = {}

    async def check(self, hosts: Sequence[Host]) -> None:
        """Begin what may begin now."""
        now = self._clock.now()
        lost = [host for host in hosts if host.state is HostState.DOWN and host.fence is not None]
        lost = within_limit(lost, now, self._settings)
        if not lost:
            return
        due = await self._due([host.id for host in lost], now)
        room = self._settings.evacuation_parallelism - await self._store.instances.count_evacuating() if due else 0
        for instance in due[: max(room, 0)]:
            await self._begin(instance, now)

    async def _due(self, hosts: Sequence[str], now: datetime) -> list[Instance]:
        self._not_before = {id_: at for id_, at in self._not_before.items() if at > now}
        is_wanted = self._settings.auto_evacuate == "all"
        found = await self._store.instances.find_evacuable(hosts, is_wanted=is_wanted, besides=self._not_before)
        return sorted(found, key=_urgency)

    async def _begin(self, instance: Instance, now: datetime) -> None:
        """As an admin's request: the host is looked at after the instance was read, for one that is back touches its
        instances."""
        self._not_before[instance.id] = now + timedelta(seconds=self._settings.evacuation_retry)
        if instance.host is None or await self._store.hosts.get_state(instance.host) is not HostState.DOWN:
            return
        spec, by = ACTIONS["evacuate"], (USER, instance.project_id)
        action = begin(spec, instance, f"req-{uuid4()}", by=by, at=now, timeout=self._settings.action_timeout)
        turn = moves.begun(instance, action, EVACUATION)
        try:
            await self._relay.commit(instance.id, **begun(instance, spec, action, turn.set, turn.effects))
        except Mismatch as mismatch:
            log.info("evacuation.not_begun", instance_id=instance.id, why=str(mismatch))
        else:
            log.warning("evacuation.begun", instance_id=instance.id, host=instance.host, action_id=action.id)


def _urgency(instance: Instance) -> tuple[int, datetime]:
    """What sorts first goes first; a priority that is no number is none."""
    priority = instance.metadata.get("ha_priority", "0")
    return -int(priority) if priority.removeprefix("-").isdecimal() else 0, instance.created_at
