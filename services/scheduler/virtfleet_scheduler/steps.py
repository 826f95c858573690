"""The scheduler's steps: each chooses a host, claims it, and hands the action over to it."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from virtfleet_common import moves
from virtfleet_common.errors import Faulty
from virtfleet_common.executor import StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import HandOver, Outcome
from virtfleet_common.records import Flavor, Host, Move
from virtfleet_common.states import HostState
from virtfleet_common.store import Store

from virtfleet_scheduler.placement import Placement

_FENCE_CHECK = 0.3


class NotMoving(Faulty):
    """A destination was asked for, for an instance that is not in a move."""

    code = "not_moving"


class NotFenced(Faulty):
    """A guest is not started elsewhere while its lost host may still run it."""

    code = "not_fenced"


class SourceIsBack(Faulty):
    """The host that a guest was to be evacuated from is not lost any more."""

    code = "source_is_back"


class Selecting:
    """Where guests go: when they are made, when they move, and when their host is lost."""

    def __init__(self, placement: Placement, store: Store, fence_timeout: float) -> None:
        self._placement = placement
        self._store = store
        self._fence_timeout = fence_timeout

    async def select(self, run: StepRun) -> Outcome:
        """The host of a new guest. Raises NoValidHost with the explanation."""
        placed = await self._placement.place(run)
        reach("select.middle")
        fields = {"host": placed.host, "claim": placed.claim, "epoch": run.instance.epoch + 1}
        explained = placed.explained(run.action.id)
        return HandOver("create", placed.host, fields, effects=explained, undo=self._placement.undo(run, placed))

    async def select_destination(self, run: StepRun) -> Outcome:
        """The host that a guest moves to, at the size it will have. Raises NoValidHost with the explanation."""
        return await self._to_destination(run, "prepare", run.instance.new_flavor)

    async def select_shelter(self, run: StepRun) -> Outcome:
        """The host that a guest of a lost host goes to, once that is surely off, and every other lost host that has yet
        to clean up after it. Raises NotFenced, SourceIsBack, NoValidHost."""
        source = _move(run).source
        for host in (source, *await self._store.cleanups.find_owing(run.instance.id)):
            await self._fenced(host)
        state = await self._store.hosts.get_state(source)
        if state not in (HostState.DOWN, None):  # a host that nobody knows any more is no danger
            raise SourceIsBack(f"host {source} is {state}: its guests stay where they are")
        return await self._to_destination(run, "shelter", lost=[source])

    async def _to_destination(
        self, run: StepRun, then: str, flavor: Flavor | None = None, lost: Sequence[str] = ()
    ) -> Outcome:
        move = _move(run)
        placed = await self._placement.place(
            run, flavor, excluded=[move.source], forced_host=run.action.notes.get("forced_host"), lost=lost
        )
        reach(f"{run.spec.name}.middle")
        turn = moves.placed(move, placed.host, placed.claim, datetime.now(UTC))
        return HandOver(
            then,
            placed.host,
            turn.set,
            effects=[*turn.effects, *placed.explained(run.action.id)],
            undo=self._placement.undo(run, placed),
        )

    async def _fenced(self, host_id: str) -> None:
        """Wait for the proof that a host, while it is lost, runs nothing any more."""
        deadline = time.monotonic() + self._fence_timeout
        while _may_run_guests(await self._store.hosts.get_brief(host_id)):
            if time.monotonic() > deadline:
                raise NotFenced(f"host {host_id} was not proven to be off within {self._fence_timeout:g} s")
            await asyncio.sleep(_FENCE_CHECK)


def _move(run: StepRun) -> Move:
    if run.instance.move is None:
        raise NotMoving(f"instance {run.instance.id} is not being moved")
    return run.instance.move


def _may_run_guests(lost: Host | None) -> bool:
    return lost is not None and lost.state is HostState.DOWN and lost.fence is None
