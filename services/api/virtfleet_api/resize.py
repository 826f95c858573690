"""What accepting a resize, a cold migration, a confirm or a revert has to check, and what it writes."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from virtfleet_common import moves
from virtfleet_common.actions import ActionSpec
from virtfleet_common.errors import BadRequest, Conflict
from virtfleet_common.records import ActionState, Flavor, Instance, Move
from virtfleet_common.states import HostState
from virtfleet_common.steps import make_step
from virtfleet_common.store import Store


async def new_flavor(store: Store, instance: Instance, args: Mapping[str, Any]) -> Flavor | None:
    """The flavor that a resize asks for; None for a migration. Raises BadRequest where it cannot be."""
    if "flavor" not in args:
        return None
    flavor = await store.flavors.get(args["flavor"])
    if flavor is None or flavor.is_disabled:
        raise BadRequest(f"Flavor {args['flavor']} could not be found.", rule="flavor_exists")
    if flavor.id == instance.flavor.id:
        raise BadRequest("When resizing, instances must change flavor!", rule="flavor_differs")
    if 0 < flavor.disk_gb < instance.flavor.disk_gb:
        raise BadRequest(
            f"The disk may not shrink: flavor {flavor.name} has {flavor.disk_gb} GiB, and the instance has "
            f"{instance.flavor.disk_gb}.",
            rule="disk_not_smaller",
        )
    return flavor


async def wanted_host(store: Store, instance: Instance, args: Mapping[str, Any]) -> str | None:
    """The host that a migration names, or None. Raises BadRequest for the instance's own and for an unknown one."""
    host: str | None = args.get("host")
    if host is None:
        return None
    if host == instance.host:
        raise BadRequest(f"Instance {instance.id} is on host {host} already.", rule="host_differs")
    if await store.hosts.get_state(host) is None:
        raise BadRequest(f"Compute host {host} could not be found.", rule="host_exists")
    return host


async def begun(
    store: Store, instance: Instance, action: ActionState, args: Mapping[str, Any], now: datetime
) -> tuple[ActionState, moves.Turn]:
    """The action and the first turn of a move. Raises Conflict for an instance that is in a move already."""
    check_not_moving(instance, action.name)
    host = await wanted_host(store, instance, args)
    flavor = await new_flavor(store, instance, args)
    turn = moves.begun(instance, action, "resize" if flavor else "migration", flavor)
    notes = {"forced_host": host} if host else {}
    return action.model_copy(update={"notes": notes}), turn


def check_not_moving(instance: Instance, action: str, *, hint: str | None = None) -> None:
    """A move is decided before another one begins: else nobody would know what the first one left. Raises Conflict."""
    move = instance.move
    if move is not None:
        raise Conflict(
            f"Cannot '{action}' instance {instance.id}: its {move.type} has to be confirmed or reverted first.",
            rule=f"{action}.move",
            hint=hint,
        )


def open_move(instance: Instance, spec: ActionSpec) -> Move:
    """The move that waits for its owner's decision. Raises Conflict if there is none."""
    if instance.move is None or not moves.is_undecided(instance):
        raise Conflict(
            f"Cannot '{spec.name}' instance {instance.id} while it is in vm_state {instance.vm_state}",
            rule=f"{spec.name}.move",
        )
    return instance.move


async def revert_of(
    store: Store, instance: Instance, move: Move, action: ActionState
) -> tuple[ActionState, moves.Turn]:
    """The action and the first turn of a revert. The source has to be up. A destination that surely runs nothing any
    more is cleaned when it returns; before that is sure, the guest is not started elsewhere. Raises Conflict.

    From now on the move is not confirmed by itself: a revert that fails may have removed the destination's copy.
    Hosts are asked for after the instance was read: one that is back touches its instances, and the write is lost.
    """
    if await store.hosts.get_state(move.source) is not HostState.UP:
        raise Conflict(
            f"Cannot 'revertResize' instance {instance.id}: the host it came from is not up at this time.",
            rule="host_up",
            hint="Try again when the host is back.",
        )
    destination = await store.hosts.get_brief(move.destination) if move.destination else None
    undue = {"move.confirm_by": None}
    if destination is not None and destination.state is HostState.UP:
        return action, moves.Turn(undue, [moves.status(move, "reverting", action.started_at)])
    if destination is not None and (destination.state is HostState.UNKNOWN or destination.fence is None):
        raise Conflict(
            f"Cannot 'revertResize' instance {instance.id}: its host is {destination.state}, and may still run it.",
            rule="host_fenced",
            hint="Try again when the host is back, or down and fenced.",
        )
    step, turn = make_step("finish_revert", move.source), moves.handed_back(instance, move)
    return action.model_copy(update={"step": step}), moves.Turn({**turn.set, **undue}, turn.effects)
