"""Work whose host is lost ends by itself, so that nothing stands in the way of an evacuation.

What can go on elsewhere does (a create, the preparation of a move, an evacuation); the rest ends with the fault
`host_lost`. What the lost host may hold of it is its clean-up, for when it returns. A revert waits until the host is
fenced: the guest is not started on its source while this host may still run it.
"""

from collections.abc import Sequence
from datetime import datetime

import structlog
from virtfleet_common import moves
from virtfleet_common.errors import Faulty
from virtfleet_common.outcomes import Change, Done, HandOver, failed, fault_of, rescheduled, reselected, succeeded
from virtfleet_common.records import ActionState, Fault, Host, Instance
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState, PowerState, VmState
from virtfleet_common.store import Expect, Mismatch, Store

log = structlog.get_logger()


class HostIsLost(Faulty):
    """The host that an action was at work on is lost."""

    code = "host_lost"


class LostWork:
    """See the module's text."""

    def __init__(self, store: Store, relay: Relay, settings: PowerSyncSettings) -> None:
        self._store = store
        self._relay = relay
        self._settings = settings

    async def end(self, hosts: Sequence[Host]) -> None:
        """End every action whose current step is on a host that is down, but for those that wait for its fence."""
        down = {f"compute.{host.id}": host for host in hosts if host.state is HostState.DOWN}
        if not down:
            return
        up = {host.id for host in hosts if host.state is HostState.UP}
        for instance in await self._store.instances.find_at(list(down)):
            if instance.action is not None:
                await self._end(instance, instance.action, down[instance.action.step.executor], up)

    async def _end(self, instance: Instance, action: ActionState, lost: Host, up: set[str]) -> None:
        if action.step.name == "revert" and lost.fence is None:
            return
        host = lost.id
        fault = fault_of(HostIsLost(f"host {host} was lost while it worked on {action.step.name}"), host)
        change = ending(instance, action, host, fault, up, self._settings.max_attempts)
        expect = Expect(action_id=action.id, seq=action.step.seq, rev=instance.rev)
        try:
            await self._relay.commit(instance.id, expect=expect, **change)
        except Mismatch as mismatch:
            log.info("work.not_ended", instance_id=instance.id, why=str(mismatch))
        else:
            log.warning("work.ended", instance_id=instance.id, step=action.step.name, host=host, action_id=action.id)


def ending(instance: Instance, action: ActionState, host: str, fault: Fault, up: set[str], max_attempts: int) -> Change:
    """What becomes of an action whose step is on a lost host. `up` are the hosts that work."""
    may_try = len(action.notes.get("excluded", ())) + 1 < max_attempts and not action.notes.get("forced_host")
    move, at = instance.move, fault.created
    match action.step.name:
        case "create" if may_try:
            return rescheduled(instance, action, fault, [moves.left(instance, host, at)])
        case "create":
            unborn = {"vm_state": VmState.ERROR, "host": None, "claim": None}
            return failed(instance, action, fault, unborn, [moves.left(instance, host, at)])
        case "prepare" | "shelter" if may_try:
            return reselected(instance, action, fault)
        case "delete":
            return _deleted(instance, action, at)
        case "revert" if move is not None and move.source in up:
            turn = moves.handed_back(instance, move)
            return succeeded(instance, action, HandOver("finish_revert", move.source, turn.set, effects=turn.effects))
        case step:
            turn = moves.given_up(instance, step, at, is_put_back=True)
            return failed(instance, action, fault, turn.set, turn.effects)


def _deleted(instance: Instance, action: ActionState, at: datetime) -> Change:
    turn = moves.deleted(instance, at, is_cleaned=False)
    return succeeded(instance, action, Done({**turn.set, "power_state": PowerState.NOSTATE}, turn.effects))
