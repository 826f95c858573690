"""Accepting an action: the same checks and the same write for HTTP and AMQP.

find (404) -> policy (403) -> lock (409) -> sound request (400) -> state table (409) -> host (409) -> one
compare-and-set that sets the first task state, the action, its first step and the events. Whoever loses it gets a 409.
The same action id accepted twice is one action, so a command that arrives twice is answered alike.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from virtfleet_common import moves
from virtfleet_common.actions import ACTIONS, ActionSpec, HostNeed
from virtfleet_common.beginning import accepting, begin, begun, superseded, unchanged
from virtfleet_common.effects import Effect
from virtfleet_common.errors import BadRequest, Conflict, Forbidden, NotFound
from virtfleet_common.outcomes import completed
from virtfleet_common.ports import Clock
from virtfleet_common.records import ActionState, Flavor, Instance
from virtfleet_common.relay import Relay
from virtfleet_common.settings import ApiSettings
from virtfleet_common.states import HostState, TaskState, VmState
from virtfleet_common.store import Mismatch, Store

from virtfleet_api import attach, evacuate, resize
from virtfleet_api.begin import READ_YOUR_WRITES, require_role
from virtfleet_api.budget import Budget
from virtfleet_api.create import CreateRequest, Creator
from virtfleet_api.identity import Identity

_TRIES = 20
_HOST_STATE_KEPT = 1.0


class Acceptor:
    """See the module's text. Every method raises Refused where a rule refuses, and has then changed nothing."""

    def __init__(self, store: Store, relay: Relay, clock: Clock, settings: ApiSettings) -> None:
        self._store = store
        self._relay = relay
        self._clock = clock
        self._settings = settings
        self._creator = Creator(store, relay, clock, settings)
        self._budget = Budget(store, settings)
        self._host_states: dict[str, tuple[float, HostState | None]] = {}

    async def find(self, who: Identity, instance_id: str) -> Instance:
        """An instance that `who` may see. Raises NotFound, for another project's instance too."""
        return _visible(who, instance_id, await self._store.instances.get(instance_id))

    async def act(
        self, who: Identity, instance_id: str, action: str, args: Mapping[str, Any], *, action_id: str
    ) -> Instance:
        """Accept `action` (a key of ACTIONS) on an instance; returns the instance as written."""
        spec = ACTIONS[action]
        for _ in range(_TRIES):
            stored = await self._store.instances.get(instance_id)
            if stored is not None and action_id in stored.accepted:
                return stored
            instance = _visible(who, instance_id, stored)
            await self._check(who, instance, spec, args)
            try:
                return await self._write(who, instance, spec, args, action_id)
            except Mismatch:
                continue  # somebody was faster: look again, and let the state table say what that means
        raise Conflict(f"Instance {instance_id} changes too fast to {spec.name} it.", rule="one_writer")

    async def create(self, who: Identity, request: CreateRequest, *, action_id: str) -> list[Instance]:
        """Accept a create: see `Creator.create`."""
        return await self._creator.create(who, request, action_id=action_id)

    async def _check(self, who: Identity, instance: Instance, spec: ActionSpec, args: Mapping[str, Any]) -> None:
        require_role(who, spec.role, spec.name)
        if spec.respects_lock and instance.locked_by is not None and not who.is_admin:
            raise Conflict(f"Instance {instance.id} is locked", rule="lock")
        if spec.name == "evacuate":
            await evacuate.check_target(self._store, instance, args)
        wrong = wrong_state(spec, instance)
        if wrong is not None:
            attribute, value = wrong
            raise Conflict(
                f"Cannot '{spec.name}' instance {instance.id} while it is in {attribute} {value}",
                rule=f"{spec.name}.{attribute}",
                attribute=attribute,
                value=value,
            )
        if spec.needs_host is HostNeed.UP and await self._host_state(instance.host) is not HostState.UP:
            raise Conflict(
                f"Cannot '{spec.name}' instance {instance.id}: its host is not up at this time.",
                rule="host_up",
                hint="Try again when the host is back, or evacuate the instance.",
            )

        if spec.needs_host is HostNeed.DOWN:
            await self._check_lost(instance, spec)

    async def _check_lost(self, instance: Instance, spec: ActionSpec) -> None:
        """The host is asked for after the instance was read: one that is back touches its instances, and whoever read
        one before then loses the compare-and-set."""
        if instance.host is None:
            raise Conflict(f"Cannot '{spec.name}' instance {instance.id}: it has no host.", rule=f"{spec.name}.host")
        if await self._store.hosts.get_state(instance.host) not in {HostState.DOWN, None}:
            raise BadRequest(
                f"Compute service of {instance.host} is still in use.",
                rule="host_down",
                hint="Wait until the host is down, or force it down when you know that it is off.",
            )

    async def _host_state(self, host: str | None) -> HostState | None:
        if host is None:
            return None
        known = self._host_states.get(host)
        if known is None or time.monotonic() - known[0] > _HOST_STATE_KEPT:
            found = await self._store.hosts.get_state(host)
            known = self._host_states[host] = (time.monotonic(), found)
        return known[1]

    async def _write(
        self, who: Identity, instance: Instance, spec: ActionSpec, args: Mapping[str, Any], action_id: str
    ) -> Instance:
        match spec.name:
            case "lock" | "unlock":
                return await self._lock(who, instance, spec, args, action_id)
            case "resetState":
                return await self._reset(who, instance, spec, VmState(args["state"]), action_id)
            case "confirmResize":
                turn = moves.confirmed(instance, resize.open_move(instance, spec), self._clock.now())
                return await self._complete(who, instance, spec, action_id, turn.set, turn.effects)
            case "delete" if instance.task_state is TaskState.DELETING:
                return instance  # as Nova: the second delete is content with the first
            case "delete" if await self._is_beyond_reach(instance):
                return await self._delete_record(who, instance, spec, action_id)
            case _:
                return await self._start(who, instance, spec, args, action_id)

    async def _start(
        self, who: Identity, instance: Instance, spec: ActionSpec, args: Mapping[str, Any], action_id: str
    ) -> Instance:
        now, timeout = self._clock.now(), self._settings.action_timeout
        by = (who.user_id, who.project_id)
        action = begin(spec, instance, action_id, by=by, at=now, timeout=timeout, args=args)
        action, turn = await self._turn(instance, spec, action, args)
        wanted = turn.set.get("new_flavor")
        if wanted is not None:
            await self._budget.hold_increase(instance, Flavor.model_validate(wanted), action_id)
        try:
            return await self._relay.commit(
                instance.id, wait=READ_YOUR_WRITES, **begun(instance, spec, action, turn.set, turn.effects)
            )
        except Mismatch as lost:
            is_taken = lost.instance is not None and action_id in lost.instance.accepted
            if wanted is not None and not is_taken:  # else another copy of this command won
                await self._budget.drop_increase(instance, action_id)
            if spec.name == "attach_volume" and not is_taken:
                await attach.dropped(self._store, action)
            raise

    async def _turn(
        self, instance: Instance, spec: ActionSpec, action: ActionState, args: Mapping[str, Any]
    ) -> tuple[ActionState, moves.Turn]:
        """What the acceptance of a move writes beside the action; nothing for any other action."""
        match spec.name:
            case "resize" | "migrate":
                return await resize.begun(self._store, instance, action, args, action.started_at)
            case "evacuate":
                return evacuate.begun(instance, spec, action, args)
            case "revertResize":
                return await resize.revert_of(self._store, instance, resize.open_move(instance, spec), action)
            case "attach_volume":
                return await attach.begun(self._store, instance, action, args)
            case "detach_volume":
                return attach.ended(instance, action, args), moves.Turn({})
            case _:
                return action, moves.Turn({})

    async def _delete_record(self, who: Identity, instance: Instance, spec: ActionSpec, action_id: str) -> Instance:
        """No hypervisor can be asked: the record goes at once, and the host cleans up when it returns."""
        turn = moves.deleted(instance, self._clock.now(), is_cleaned=False)
        gone = {**turn.set, "task_state": None}
        return await self._complete(who, instance, spec, action_id, gone, turn.effects, end=True)

    async def _reset(
        self, who: Identity, instance: Instance, spec: ActionSpec, vm_state: VmState, action_id: str
    ) -> Instance:
        """An admin says what the instance is; the action in progress, if there is one, ends as superseded."""
        turn = moves.reset(instance, vm_state, self._clock.now())
        return await self._complete(who, instance, spec, action_id, turn.set, turn.effects, end=True)

    async def _lock(
        self, who: Identity, instance: Instance, spec: ActionSpec, args: Mapping[str, Any], action_id: str
    ) -> Instance:
        is_admins = instance.locked_by == "admin"
        if spec.name == "unlock":
            if is_admins and not who.is_admin:
                raise Forbidden("Only an admin may unlock what an admin locked.", rule="unlock_override")
            locked: dict[str, str | None] = {"locked_by": None, "locked_reason": None}
        else:
            owner = "admin" if who.is_admin or is_admins else "owner"
            locked = {"locked_by": owner, "locked_reason": args.get("locked_reason")}
        return await self._complete(who, instance, spec, action_id, locked)

    async def _complete(
        self,
        who: Identity,
        instance: Instance,
        spec: ActionSpec,
        action_id: str,
        fields: Mapping[str, Any],
        more: Sequence[Effect] = (),
        *,
        end: bool = False,
    ) -> Instance:
        """An action that its acceptance completes, and that ends the one in progress if `end` says so."""
        now = self._clock.now()
        ended = superseded(instance, by=spec.name, now=now) if end else []
        by = (who.user_id, who.project_id)
        change = completed(instance, spec.name, action_id, by=by, at=now, set=fields, more=more)
        change["effects"] = [*ended, *change["effects"]]
        change["set"] = {**change["set"], **accepting(instance, action_id)}
        return await self._relay.commit(
            instance.id, expect=unchanged(instance), end=end, wait=READ_YOUR_WRITES, **change
        )

    async def _is_beyond_reach(self, instance: Instance) -> bool:
        """Asks for the host as it is now: by what was known, the step would go to a host forced down a moment ago."""
        return instance.host is None or await self._store.hosts.get_state(instance.host) in {HostState.DOWN, None}


def wrong_state(spec: ActionSpec, instance: Instance) -> tuple[str, str | None] | None:
    """The attribute that the state table refuses, and its value; None if the action is allowed now."""
    if spec.vm_states is not None and instance.vm_state not in spec.vm_states:
        return "vm_state", instance.vm_state
    if spec.task_states is not None and instance.task_state not in spec.task_states:
        return "task_state", instance.task_state
    return None


def _visible(who: Identity, instance_id: str, stored: Instance | None) -> Instance:
    if stored is None or stored.vm_state is VmState.DELETED or not _may_see(who, stored):
        raise NotFound(f"Instance {instance_id} could not be found.", rule="instance_exists")
    return stored


def _may_see(who: Identity, instance: Instance) -> bool:
    return who.is_admin or instance.project_id == who.project_id
