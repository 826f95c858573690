"""Work that stands still: what was committed and not sent, steps without progress, actions past their time.

This is what makes a lost message, a crashed writer or an emptied broker harmless. Every write is a compare-and-set on
what was read, so that replicas of this service, and the executor itself, may act at the same moment.
"""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import structlog
from virtfleet_common import moves
from virtfleet_common.errors import Faulty
from virtfleet_common.outcomes import completed, failed, fault_of
from virtfleet_common.ports import Clock
from virtfleet_common.records import ActionState, Instance
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState, VmState
from virtfleet_common.store import Delivered, Expect, Mismatch, Store

from virtfleet_power_sync.watch import Watch

log = structlog.get_logger()


class TimedOut(Faulty):
    """An action did not end within its time, and nobody is at work on it."""

    code = "timed_out"


class Overdue:
    """See the module's text."""

    def __init__(self, store: Store, relay: Relay, clock: Clock, settings: PowerSyncSettings) -> None:
        self._store = store
        self._relay = relay
        self._clock = clock
        self._settings = settings
        self._watch = Watch(clock.now(), settings.step_allowance)

    async def deliver_unsent(self) -> None:
        """Deliver the effects that their writer left in the outbox."""
        for instance in await self._store.instances.find_undelivered(self._settings.unsent_grace):
            log.info("outbox.delivered_late", instance_id=instance.id, effects=len(instance.outbox))
            await self._relay.deliver(instance, instance.outbox)

    async def send_again(self) -> None:
        """Send the steps that were not sent or make no progress; end the actions that are past their time."""
        settings = self._settings
        stalled = await self._store.instances.find_stalled(
            unsent=settings.unsent_grace, allowance=settings.step_allowance
        )
        self._watch.look(self._clock.now())
        up = await self._hosts_up() if stalled else set()
        for instance in stalled:
            action = instance.action
            if action is None:
                continue
            if self._deadline(action) < self._clock.now():
                await self._end(instance, action)
            elif _is_reachable(action, up):
                await self._send(instance, action)

    async def confirm_due(self) -> None:
        """Confirm the moves whose owner let the time for a decision pass. "Not now" is tried again later: while the
        guest's host is not up, the copy on the source may be the only one there is."""
        now = self._clock.now()
        for instance in await self._store.instances.find_unconfirmed(now, await self._hosts_up()):
            move = instance.move
            if move is None:
                continue
            turn = moves.confirmed(instance, move, now)
            by = (instance.user_id, instance.project_id)
            change = completed(
                instance, "confirmResize", f"req-{uuid4()}", by=by, at=now, set=turn.set, more=turn.effects
            )
            try:
                await self._relay.commit(instance.id, expect=Expect(rev=instance.rev), **change)
            except Mismatch as mismatch:
                log.info("move.not_confirmed", instance_id=instance.id, why=str(mismatch))

    def _deadline(self, action: ActionState) -> datetime:
        """When the action is given up: its time is over, nothing was heard of it for as long, and whoever is at work
        has had the time to say so since this process looks on."""
        silence, allowance = self._settings.action_timeout, self._settings.step_allowance
        heard_by = action.progressed_at + timedelta(seconds=silence)
        return max(action.expires_at, heard_by, self._watch.since + timedelta(seconds=allowance))

    async def _hosts_up(self) -> set[str]:
        return {host.id for host in await self._store.hosts.find() if host.state is HostState.UP}

    async def _send(self, instance: Instance, action: ActionState) -> None:
        if await self._relay.send_step(instance):
            log.info("step.sent_again", instance_id=instance.id, step=action.step.name, action_id=action.id)
            await self._store.instances.mark_delivered(Delivered(instance.id, [], action.id, action.step.seq))

    async def _end(self, instance: Instance, action: ActionState) -> None:
        age = (datetime.now(UTC) - action.started_at).total_seconds()
        fault = fault_of(TimedOut(f"{action.name} did not end within {age:.0f} s", rule="action_timeout"), None)
        unborn = {"vm_state": VmState.ERROR} if instance.vm_state is VmState.BUILDING else {}
        turn = moves.given_up(instance, action.step.name, fault.created, is_put_back=False)
        change = failed(instance, action, fault, {**unborn, **turn.set}, turn.effects)
        try:
            await self._relay.commit(instance.id, expect=_as_read(action), **change)
        except Mismatch as mismatch:
            log.info("action.not_ended", instance_id=instance.id, why=str(mismatch))


def _as_read(action: ActionState) -> Expect:
    return Expect(action_id=action.id, seq=action.step.seq, progressed_at=action.progressed_at)


def _is_reachable(action: ActionState, up: set[str]) -> bool:
    kind, _, host = action.step.executor.partition(".")
    return kind != "compute" or host in up
