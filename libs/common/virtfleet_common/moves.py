"""What a move (resize, cold migration, evacuation) writes at its turns, from its acceptance to its end. No I/O.

In a resize or migration the source keeps its disk and its claim until the move is confirmed or reverted, so both ways
stay open. In an evacuation the source is lost: it keeps its claim until the guest lives elsewhere, so that a guest that
finds no shelter still belongs somewhere, and what is left there goes when the source returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from virtfleet_common import effects, quota, volumes
from virtfleet_common.effects import Effect
from virtfleet_common.records import EVACUATION, ActionState, Cleanup, Flavor, Instance, Move
from virtfleet_common.states import PowerState, VmState

RANKS = {
    "accepted": 5,
    "pre-migrating": 10,
    "migrating": 20,
    "post-migrating": 30,
    "finished": 40,
    "done": 40,
    "reverting": 50,
    "confirmed": 60,
    "reverted": 60,
    "completed": 60,
    "error": 90,
}
"""The order in which a migration's status is written, so that a late write cannot take it back."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The fields of the instance to set, and the effects to commit with them."""

    set: Mapping[str, Any]
    effects: list[Effect] = field(default_factory=list)


def begun(instance: Instance, action: ActionState, kind: str, flavor: Flavor | None = None) -> Turn:
    """The accepted move; `flavor` is the new one of a resize."""
    id_ = str(UUID(action.trace_id))
    move = Move(
        id=id_, type=kind, source=instance.host or "", source_claim=instance.claim, old_vm_state=instance.vm_state
    )
    document = {
        "number": UUID(id_).int >> 80,
        "instance_id": instance.id,
        "project_id": action.project_id,
        "user_id": action.user_id,
        "type": kind,
        "source": instance.host,
        "old_flavor_id": instance.flavor.id,
        "new_flavor_id": (flavor or instance.flavor).id,
        "created_at": action.started_at,
    }
    fields = {"move": move.model_dump(), "new_flavor": flavor.document() if flavor else None}
    first = "accepted" if kind == EVACUATION else "pre-migrating"
    return Turn(fields, [status(move, first, action.started_at, **document)])


def status(move: Move, word: str, at: datetime, **fields: Any) -> Effect:
    """The migration's status goes on."""
    return effects.migration(move.id, {"status": word, "updated_at": at, **fields}, RANKS[word])


def placed(move: Move, host: str, claim: str, at: datetime) -> Turn:
    """A scheduler claimed a destination."""
    fields = {"move.destination": host, "move.claim": claim}
    return Turn(fields, [status(move, "pre-migrating", at, destination=host)])


def refused(instance: Instance, move: Move, at: datetime) -> Turn:
    """The destination refused, or was lost: its claim goes, and another one is looked for. An instance that it had
    taken over already is its source's again."""
    back, owed = _taken_back(instance, move, at)
    fields = {**back, "move.destination": None, "move.claim": None, "move.is_shared": None}
    return Turn(fields, [*_given_back(instance, move.claim), *owed])


def abandoned(instance: Instance, at: datetime) -> Turn:
    """The move failed before the instance changed hands for good: it stays what it was, where it was."""
    move = instance.move
    fields = {"move": None, "old_flavor": None, "new_flavor": None, "progress": 0}
    if move is None:
        return Turn(fields)
    told = [status(move, "error", at), quota.settled(instance, instance.flavor)]
    if move.type == EVACUATION:
        back, owed = _taken_back(instance, move, at)
        return Turn({**fields, **back}, [*told, *_given_back(instance, move.claim), *owed])
    if move.destination is not None and move.destination != move.source:
        told.append(left(instance, move.destination, at, move=move, claim=move.claim))
    return Turn(fields, told)


def given_up(instance: Instance, step: str, at: datetime, *, is_put_back: bool) -> Turn:
    """What a step of a move leaves when it fails for good or its time is over; nothing for a step of no move.

    Before the switch the move is abandoned, and the guest is what it was if it `is_put_back`. After the switch, both
    copies stay, and the owner may still take it back. On the way back it is the source's, whatever the guest does.
    An evacuation can always be tried again. A deletion takes the place of a move that nobody carries on afterwards.
    """
    broken = {"vm_state": VmState.ERROR}
    match step:
        case "select_destination" | "prepare" | "select_shelter" | "shelter":
            return abandoned(instance, at)
        case "delete" if instance.move is not None and not is_undecided(instance):
            return abandoned(instance, at)
        case "move":
            turn = abandoned(instance, at)
            return turn if is_put_back else Turn({**turn.set, **broken}, turn.effects)
        case "finish":
            return Turn(broken)
        case "finish_revert" if instance.move is not None:
            turn = reverted(instance, instance.move, at)
            return Turn({**turn.set, **broken}, turn.effects)
        case "attach_volume":
            return Turn(*volumes.given_up(instance, at))
        case _:
            return Turn({})


def reset(instance: Instance, vm_state: VmState, at: datetime) -> Turn:
    """An admin says what the instance is: the step in progress is given up, whatever its executor may have done of it.
    A move that waits for its owner's decision goes on waiting: what is said to be active is resized then."""
    action = instance.action
    turn = given_up(instance, action.step.name, at, is_put_back=False) if action else Turn({})
    said = VmState.RESIZED if vm_state is VmState.ACTIVE and is_undecided(instance) else vm_state
    return Turn({**turn.set, "vm_state": said, "task_state": None}, turn.effects)


def is_undecided(instance: Instance) -> bool:
    """Whether the instance has changed hands in a resize or migration, and may still be taken back."""
    move = instance.move
    return move is not None and move.type != EVACUATION and instance.host == move.destination


def switched(instance: Instance, move: Move, at: datetime, *, is_shared: bool) -> Turn:
    """The instance changes hands: host, epoch, claim and flavor, all in one write."""
    fields = {
        **_owned_by(move.destination, instance, move.claim),
        "flavor": (instance.new_flavor or instance.flavor).document(),
        "old_flavor": instance.flavor.document(),
        "new_flavor": None,
        "move.is_shared": is_shared,
    }
    return Turn(fields, [status(move, "post-migrating", at), *volumes.moved(instance, move.destination)])


def finished(move: Move, at: datetime, confirm_window: float) -> Turn:
    """The guest is on its destination; its owner has `confirm_window` seconds (0: for ever) to decide."""
    until = at + timedelta(seconds=confirm_window) if confirm_window else None
    return Turn({"move.confirm_by": until}, [status(move, "finished", at)])


def confirmed(instance: Instance, move: Move, at: datetime) -> Turn:
    """The owner is content: the record says so at once; what the source still holds is its own clean-up."""
    is_off = instance.power_state.shown in {PowerState.SHUTDOWN, PowerState.CRASHED}
    vm_state = VmState.STOPPED if is_off else VmState.ACTIVE
    fields = {"vm_state": vm_state, "task_state": None, "move": None, "old_flavor": None}
    told = [status(move, "confirmed", at), quota.settled(instance, instance.flavor)]
    return Turn(fields, [*told, left(instance, move.source, at, move=move, claim=move.source_claim)])


def handed_back(instance: Instance, move: Move) -> Turn:
    """The owner takes it back: the source owns the instance again, as it was."""
    fields = _owned_by(move.source, instance, move.source_claim)
    flavor = (instance.old_flavor or instance.flavor).document()
    return Turn({**fields, "flavor": flavor}, volumes.moved(instance, move.source))


def reverted(instance: Instance, move: Move, at: datetime) -> Turn:
    """The guest is back on its source; the destination's claim goes when the destination is clean."""
    told = [status(move, "reverted", at), quota.settled(instance, instance.flavor)]
    if move.destination is not None:
        told.append(left(instance, move.destination, at, move=move, claim=move.claim))
    return Turn({"move": None, "old_flavor": None}, told)


def sheltering(instance: Instance, move: Move, *, is_shared: bool) -> Turn:
    """An evacuation's destination takes the instance over, before it starts anything."""
    return Turn({**_owned_by(move.destination, instance, move.claim), "move.is_shared": is_shared})


def sheltered(instance: Instance, move: Move, at: datetime) -> Turn:
    """The evacuated guest lives on its destination. The place on its source is given back at once; what is left there
    goes when the source returns, and then the migration is completed."""
    told = [status(move, "done", at), *_given_back(instance, move.source_claim)]
    return Turn({"move": None}, [*told, left(instance, move.source, at, move=move, is_completing=True)])


def deleted(instance: Instance, at: datetime, *, is_cleaned: bool) -> Turn:
    """The instance goes for good. Hosts that could not clean up (its own too, unless it `is_cleaned`) do it when they
    can; no other instance needs the disk, wherever it is."""
    move = instance.move
    told = [status(move, "error", at)] if move else []
    others = {move.source, move.destination} if move else set()
    owing = (others | {instance.host}) - {None, instance.host if is_cleaned else None}
    owed = [left(instance, host, at, move=move, is_shared=False) for host in sorted(filter(None, owing))]
    fields = {"vm_state": VmState.DELETED, "deleted_at": at, "move": None}
    given_back = [effects.release(instance.id), effects.volumes_released(instance.id), quota.gone(instance)]
    return Turn(fields, [*given_back, *told, *owed])


def left(
    instance: Instance,
    host: str,
    at: datetime,
    *,
    move: Move | None = None,
    claim: str | None = None,
    is_shared: bool | None = None,
    is_completing: bool = False,
) -> Effect:
    """What a host has to clean up, now or when it is back."""
    cleanup = Cleanup(
        id=f"{move.id if move else f'{instance.id}:{instance.epoch}'}:{host}",
        host=host,
        instance_id=instance.id,
        claim=claim,
        is_shared=move.is_shared if move and is_shared is None else is_shared,
        is_completing=is_completing,
        migration_id=move.id if move else None,
        created_at=at,
    )
    return effects.cleanup(cleanup)


def _given_back(instance: Instance, claim: str | None) -> list[Effect]:
    return [effects.release(instance.id, claim)] if claim else []


def _owned_by(host: str | None, instance: Instance, claim: str | None) -> dict[str, Any]:
    """The fields of an instance that changes hands."""
    return {"host": host, "epoch": instance.epoch + 1, "claim": claim}


def _taken_back(instance: Instance, move: Move, at: datetime) -> tuple[dict[str, Any], list[Effect]]:
    """The fields of an evacuated instance whose destination had it already, and what that one still has to clean."""
    destination = move.destination
    if move.type != EVACUATION or destination is None or instance.host != destination:
        return {}, []
    owed = left(instance, destination, at, move=move)
    return _owned_by(move.source, instance, move.source_claim), [owed, *volumes.moved(instance, move.source)]
