"""Writes one difference to the record, by compare-and-set, or begins the action that the instance's policy asks for.

Good path: the instance, read a moment ago, still has that revision: one write sets the power state, and either adopts
the vm_state or makes the remedy the action in progress. Bad path: somebody else wrote meanwhile; then nothing is
written, and the next heartbeat says it again. Why it is safe: a report that was begun before the record's power state
was written is no news, an instance in an action is left to it, and a remedy is an action as any other: it ends.
"""

from datetime import datetime
from typing import Any

import structlog
from virtfleet_common.actions import ACTIONS
from virtfleet_common.beginning import SYSTEM, begin, begun
from virtfleet_common.effects import Effect
from virtfleet_common.events import power_changed
from virtfleet_common.messages import Heartbeat, PowerDelta
from virtfleet_common.ports import Clock
from virtfleet_common.records import Instance, Sighting
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import PowerState
from virtfleet_common.store import Expect, Mismatch, Store
from virtfleet_common.store.instance_feed import Recorded

from virtfleet_power_sync.policies import Policies, action_id, due_at
from virtfleet_power_sync.reconcile import Difference, differs, is_newer

log = structlog.get_logger()
_HISTORY = 100
Change = dict[str, Any]


class Adopter:
    """See the module's text."""

    def __init__(self, store: Store, relay: Relay, clock: Clock, settings: PowerSyncSettings) -> None:
        self._store = store
        self._relay = relay
        self._clock = clock
        self._settings = settings
        self._misread: dict[tuple[str, str], str] = {}

    async def adopt(self, report: Heartbeat | PowerDelta, instance: Instance, power: PowerState | None) -> None:
        """Make the record of an instance say what its host reported of it (None: it is missing)."""
        recorded = Recorded.of(instance)
        difference = differs(recorded, power, self._policies(instance))
        if difference is None or not is_newer(recorded, report.boot_id, report.sequence):
            return
        seen = Sighting(boot=report.boot_id, sequence=report.sequence).model_dump()
        change = await self._change(instance, difference, {**difference.set, "power_seen": seen})
        if change is None:
            return
        try:
            await self._relay.commit(instance.id, **change)
        except Mismatch as mismatch:
            log.info("power.not_adopted", instance_id=instance.id, why=str(mismatch))
        else:
            remedy = difference.remedy if "begin" in change else None
            log.info("power.adopted", instance_id=instance.id, host=instance.host, remedy=remedy, **difference.set)

    async def _change(self, instance: Instance, difference: Difference, fields: dict[str, Any]) -> Change | None:
        """The write; None where there is nothing new to say and it is too early for another remedy."""
        told = [power_changed(instance, difference.word, after=difference.set)] if difference.is_news else []
        if difference.remedy is not None:
            now = self._clock.now()
            due = due_at(await self._store.actions.find(instance.id, _HISTORY), difference.remedy, now, self._settings)
            if due <= now:
                return self._remedied(instance, difference.remedy, fields, told, now)
            if difference.is_news:
                log.info("remedy.put_off", instance_id=instance.id, remedy=difference.remedy, until=due.isoformat())
        if not difference.is_news:
            return None
        expect = Expect(task_states=frozenset({None}), host=instance.host, epoch=instance.epoch, rev=instance.rev)
        return {"expect": expect, "set": fields, "effects": told}

    def _remedied(
        self, instance: Instance, remedy: str, fields: dict[str, Any], told: list[Effect], now: datetime
    ) -> Change:
        id_, by, timeout = action_id(instance, remedy), (SYSTEM, instance.project_id), self._settings.action_timeout
        action = begin(ACTIONS[remedy], instance, id_, by=by, at=now, timeout=timeout)
        return begun(instance, ACTIONS[remedy], action, fields, told)

    def _policies(self, instance: Instance) -> Policies:
        policies = Policies.of(instance.metadata, self._settings)
        for name, value in policies.unknown:
            if self._misread.get((instance.id, name)) != value:
                self._misread[instance.id, name] = value
                log.warning("policy.unknown", instance_id=instance.id, policy=name, value=value)
        return policies
