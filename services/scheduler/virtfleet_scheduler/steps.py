"""The scheduler's steps: each chooses a host, claims it, and hands the action over to it."""

from datetime import UTC, datetime

from virtfleet_common import moves
from virtfleet_common.errors import Faulty
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import HandOver, Outcome

from virtfleet_scheduler.placement import Placement


class NotMoving(Faulty):
    """A destination was asked for, for an instance that is not in a move."""

    code = "not_moving"


class Selecting:
    """Where guests go: when they are made, and when they move."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement

    async def select(self, run: StepRun) -> Outcome:
        """The host of a new guest. Raises NoValidHost with the explanation."""
        placed = await self._placement.place(run)
        reach("select.middle")
        fields = {"host": placed.host, "claim": placed.claim, "epoch": run.instance.epoch + 1}
        explained = placed.explained(run.action.id)
        return HandOver("create", placed.host, fields, effects=explained, undo=self._placement.undo(run, placed))

    async def select_destination(self, run: StepRun) -> Outcome:
        """The host that a guest moves to, at the size it will have. Raises NoValidHost with the explanation."""
        instance, move = run.instance, run.instance.move
        if move is None:
            raise NotMoving(f"instance {instance.id} is not being moved")
        placed = await self._placement.place(
            run,
            instance.new_flavor,
            excluded=[move.source],
            forced_host=run.action.notes.get("forced_host"),
        )
        reach("select_destination.middle")
        turn = moves.placed(move, placed.host, placed.claim, datetime.now(UTC))
        return HandOver(
            "prepare",
            placed.host,
            turn.set,
            effects=[*turn.effects, *placed.explained(run.action.id)],
            undo=self._placement.undo(run, placed),
        )
