"""What a move (resize, cold migration) writes at its turns: begun, abandoned, switched, confirmed, reverted. No I/O.

The source keeps its disk and its claim until the move is confirmed or reverted, so both ways stay open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from virtfleet_common import effects, quota, volumes
from virtfleet_common.effects import Effect
from virtfleet_common.records import ActionState, Cleanup, Flavor, Instance, Move
from virtfleet_common.states import PowerState, VmState

RANKS = {
    "pre-migrating": 10,
    "migrating": 20,
    "post-migrating": 30,
    "finished": 40,
    "reverting": 50,
    "confirmed": 60,
    "reverted": 60,
    "error": 90,
}
"""The order in which a migration's status is written, so that a late write cannot take it back."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The fields of the instance to set, and the effects to commit with them."""

    set: Mapping[str, Any]
    effects: list[Effect] = field(default_factory=list)


def begun(instance: Instance, action: ActionState, flavor: Flavor | None) -> Turn:
    """The accepted move: `flavor` is the new one of a resize, None for a cold migration."""
    id_ = str(UUID(action.trace_id))
    kind = "resize" if flavor else "migration"
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
    return Turn(fields, [status(move, "pre-migrating", action.started_at, **document)])


def status(move: Move, word: str, at: datetime, **fields: Any) -> Effect:
    """The migration's status goes on."""
    return effects.migration(move.id, {"status": word, "updated_at": at, **fields}, RANKS[word])


def placed(move: Move, host: str, claim: str, at: datetime) -> Turn:
    """A scheduler claimed a destination."""
    fields = {"move.destination": host, "move.claim": claim}
    return Turn(fields, [status(move, "pre-migrating", at, destination=host)])


def refused(move: Move, instance_id: str) -> Turn:
    """The destination refused: its claim goes, and another one is looked for."""
    given_back = [effects.release(instance_id, move.claim)] if move.claim else []
    return Turn({"move.destination": None, "move.claim": None}, given_back)


def abandoned(instance: Instance, at: datetime) -> Turn:
    """The move failed before the instance changed hands: it stays what it was, where it was."""
    move = instance.move
    fields = {"move": None, "new_flavor": None, "progress": 0}
    if move is None:
        return Turn(fields)
    told = [status(move, "error", at), quota.settled(instance, instance.flavor)]
    if move.destination is not None and move.destination != move.source:
        told.append(_left(move, instance, move.destination, "destination", move.claim, at))
    return Turn(fields, told)


def given_up(instance: Instance, step: str, at: datetime, *, is_put_back: bool) -> Turn:
    """What a step of a move leaves when it fails for good or its time is over; nothing for a step of no move.

    Before the switch the move is abandoned, and the guest is what it was if it `is_put_back`. After the switch, both
    copies stay, and the owner may still take it back. On the way back it is the source's, whatever the guest does.
    """
    broken = {"vm_state": VmState.ERROR}
    match step:
        case "select_destination" | "prepare":
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
            return Turn(*volumes.given_up(instance, at, is_put_back=is_put_back))
        case _:
            return Turn({})


def switched(instance: Instance, move: Move, at: datetime, *, is_shared: bool) -> Turn:
    """The instance changes hands: host, epoch, claim and flavor, all in one write."""
    fields = {
        "host": move.destination,
        "epoch": instance.epoch + 1,
        "claim": move.claim,
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
    left = _left(move, instance, move.source, "source", move.source_claim, at)
    return Turn(fields, [status(move, "confirmed", at), quota.settled(instance, instance.flavor), left])


def handed_back(instance: Instance, move: Move) -> Turn:
    """The owner takes it back: the source owns the instance again, as it was."""
    fields = {
        "host": move.source,
        "epoch": instance.epoch + 1,
        "claim": move.source_claim,
        "flavor": (instance.old_flavor or instance.flavor).document(),
    }
    return Turn(fields, volumes.moved(instance, move.source))


def reverted(instance: Instance, move: Move, at: datetime) -> Turn:
    """The guest is back on its source; the destination's claim goes when the destination is clean."""
    told = [status(move, "reverted", at), quota.settled(instance, instance.flavor)]
    if move.destination is not None:
        told.append(_left(move, instance, move.destination, "destination", move.claim, at))
    return Turn({"move": None, "old_flavor": None}, told)


def deleted(instance: Instance, at: datetime) -> list[Effect]:
    """The instance goes while it is moved: the other host has something to clean up too."""
    move = instance.move
    if move is None:
        return []
    others = {move.source: ("source", move.source_claim), move.destination: ("destination", move.claim)}
    left = [
        _left(move, instance, host, what, claim, at)
        for host, (what, claim) in others.items()
        if host is not None and host != instance.host
    ]
    return [status(move, "error", at), *left]


def _left(move: Move, instance: Instance, host: str, what: str, claim: str | None, at: datetime) -> Effect:
    cleanup = Cleanup(
        id=f"{move.id}:{what}",
        host=host,
        instance_id=instance.id,
        what=what,
        claim=claim,
        is_shared=move.is_shared,
        migration_id=move.id,
        created_at=at,
    )
    return effects.cleanup(cleanup)
