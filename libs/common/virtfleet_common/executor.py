"""The recipe of every step: claim, acknowledge, work, renew, finish.

Good path: a wake-up arrives; a compare-and-set claims the step and writes who has it; the message is acknowledged; the
handler works while its progress is renewed; a last compare-and-set ends the action or hands over to its next step.
Bad paths: the executor dies (whoever finds its claim next takes the step over and the handler starts from what it
observes); the step was preempted (the next write misses, the run stops and says nothing); the handler fails (the
step's failure rule decides). Why it is safe: nothing is written but through the claim, and a claim has one owner.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog

from virtfleet_common import effects, moves, telemetry
from virtfleet_common.bus import Delivery
from virtfleet_common.effects import Effect
from virtfleet_common.errors import BadMessage, Faulty, LostOwnership, StoreUnavailable, VirtfleetError
from virtfleet_common.failpoints import reach
from virtfleet_common.messages import PerformStep
from virtfleet_common.outcomes import (
    Change,
    NotCleaned,
    Outcome,
    Undo,
    failed,
    fault_of,
    rescheduled,
    reselected,
    succeeded,
)
from virtfleet_common.records import ActionState, Instance
from virtfleet_common.relay import Relay
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import PowerState, TaskState, VmState
from virtfleet_common.steps import STEPS, FailureRule, StepSpec
from virtfleet_common.store import Expect, Mismatch, Store
from virtfleet_common.store.guard import answered

log = structlog.get_logger()
_RETRIED = frozenset({FailureRule.RESCHEDULE, FailureRule.RESELECT})


StepHandler = Callable[["StepRun"], Awaitable[Outcome]]
Observe = Callable[[str], Awaitable[PowerState | None]]
"""The power state of a guest for the failure rule `observe`; None: nobody can tell."""


class StepRun:
    """One step being executed: what its handler may see and do."""

    def __init__(
        self,
        executor: "StepExecutor",
        instance: Instance,
        action: ActionState,
        spec: StepSpec,
        carried: Sequence[Effect] = (),
    ) -> None:
        self._executor = executor
        self.instance = instance
        self.action = action
        self.spec = spec
        self.is_resumed = action.attempt > 1
        self._carried = carried
        self._proven_at = time.monotonic()

    @property
    def key(self) -> tuple[str, int]:
        """Which step this is: its action, and its number in it."""
        return _key(self.action)

    @property
    def mine(self) -> Expect:
        """The condition of every write of this run."""
        return Expect(action_id=self.action.id, seq=self.action.step.seq, claimed_by=self._executor.boot)

    def has_reached(self, task_state: TaskState) -> bool:
        """Whether the instance is at `task_state` of the step's path, or past it."""
        path, now = self.spec.path, self.instance.task_state
        return now in path and path.index(now) >= path.index(task_state)

    async def prove(self, max_age: float) -> None:
        """Look whether the step is still this run's, unless it was seen to be within `max_age` seconds: a process that
        stood still for a while does not know what it lost meanwhile. Waits for the database to answer, as `commit`
        does. Raises LostOwnership."""
        if time.monotonic() - self._proven_at > max_age and not await answered(self.renew):
            raise LostOwnership(f"step {self.spec.name} was taken away", instance_id=self.instance.id)

    async def renew(self) -> bool:
        """Note the progress of this run; False if the step is no longer its own. Raises StoreUnavailable."""
        asked_at = time.monotonic()
        is_mine = await self._executor.renew(self.instance.id, self.mine)
        self._proven_at = asked_at if is_mine else self._proven_at
        return is_mine

    async def advance(self, task_state: TaskState, **notes: Any) -> None:
        """Go on to the next task state of the path, and keep notes for whoever resumes. Raises LostOwnership."""
        kept = {f"notes.{name}": value for name, value in notes.items()}
        await self.commit(set={"task_state": task_state}, action={"sent_at": self.action.sent_at, **kept})

    async def _committed(self, change: dict[str, Any]) -> Instance:
        if not change.get("effects"):
            return await self._executor.relay.commit_quietly(self.instance.id, expect=self.mine, **change)
        carried, self._carried = self._carried, ()
        return await self._executor.relay.commit(self.instance.id, expect=self.mine, carried=carried, **change)

    async def tell_so_far(self) -> None:
        """Deliver what the claim committed: a step that takes long shows that it has begun."""
        carried, self._carried = self._carried, ()
        if carried:
            await self._executor.relay.deliver(self.instance, carried)

    async def tell(self, name: str, details: str) -> None:
        """Record an action event for people (`soft_reboot_fell_back`). Raises LostOwnership."""
        now = datetime.now(UTC)
        note = effects.noted(
            self.action.id, self.action.step.seq, name=name, at=now, details=details, host=self.instance.host
        )
        await self.commit(effects=[note])

    async def commit(self, **change: Any) -> None:
        """Write the instance as this run, for as long as it takes the database to answer. Raises LostOwnership."""
        try:
            await answered(partial(self._commit_once, change))
        except Mismatch as lost:
            raise LostOwnership(f"{lost}", instance_id=self.instance.id) from lost
        self.action = self.instance.action or self.action

    async def _commit_once(self, change: dict[str, Any]) -> None:
        asked_at = time.monotonic()
        self.instance = await self._committed(change)
        self._proven_at = asked_at


class StepExecutor:
    """Executes the steps addressed to `name` (`scheduler`, `compute.<host>`), as boot `boot`.

    `observe` serves the failure rule of that name; `on_end` is told of every step that ended, and `stamp` gives the
    fields that its last write adds. `is_only_one`: no other process executes for this name, so a claim of another boot
    is a dead one's. Otherwise a claim is taken over once it made no progress for the step's allowance.
    """

    def __init__(
        self,
        *,
        name: str,
        boot: str,
        host: str | None,
        store: Store,
        relay: Relay,
        settings: CommonSettings,
        handlers: Mapping[str, StepHandler],
        observe: Observe | None = None,
        on_end: Callable[[Instance], Awaitable[None]] | None = None,
        stamp: Callable[[], Mapping[str, Any]] = dict,
        is_only_one: bool = False,
    ) -> None:
        self.name = name
        self.boot = boot
        self.host = host
        self.relay = relay
        self._store = store
        self._settings = settings
        self._handlers = handlers
        self._observe = observe
        self._on_end = on_end
        self._stamp = stamp
        self._is_only_one = is_only_one
        self._runs: dict[str, tuple[StepRun, asyncio.Task[None]]] = {}
        self._claiming: set[tuple[str, int]] = set()

    async def take(self, delivery: Delivery) -> None:
        """The consumer's handler: claim the step of a wake-up, acknowledge, and start to work."""
        wake_up: PerformStep = delivery.read(PerformStep)
        spec = STEPS.get(wake_up.step)
        if spec is None or spec.name not in self._handlers:
            raise BadMessage(f"{self.name} knows no step {wake_up.step!r}")
        key = wake_up.action_id, wake_up.seq
        if key in self._claiming:  # a copy, as fast as the first: it must not take for dead whom it cannot see yet
            await delivery.settler.ack()
            return
        self._claiming.add(key)
        try:
            await self._claim_and_start(wake_up, spec, delivery)
        finally:
            self._claiming.discard(key)

    async def _claim_and_start(self, wake_up: PerformStep, spec: StepSpec, delivery: Delivery) -> None:
        reach(f"{spec.name}.before_claim")
        started = effects.step_started(
            wake_up.action_id, wake_up.seq, name=spec.record, host=self.host, at=datetime.now(UTC)
        )
        claimed = await self._claim(wake_up, spec, started)
        await delivery.settler.ack()
        if claimed is not None:
            self._start(claimed, spec, [started])

    async def resume(self) -> int:
        """Take over what earlier boots of this executor had claimed. Returns how many steps."""
        left = await self._store.instances.find_claimed_before(self.name, self.boot)
        for instance in left:
            action = instance.action
            if action is None or action.step.name not in self._handlers:
                continue
            taken = await self._take_over(instance, action)
            if taken is not None:
                self._start(taken, STEPS[action.step.name])
        return len(left)

    async def renew(self, instance_id: str, expect: Expect) -> bool:
        """Note that a run of this executor is alive and at work; False if its step was taken from it."""
        return await self._store.instances.renew(instance_id, expect)

    def is_at_work(self, instance_id: str) -> bool:
        """Whether a step of this instance is under way here."""
        return instance_id in self._runs

    async def stop(self) -> None:
        """Stop the runs under way; their claims stay, and the next boot resumes them."""
        tasks = {task for _, task in self._runs.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _claim(self, wake_up: PerformStep, spec: StepSpec, started: Effect) -> Instance | None:
        expect = Expect(
            task_states=frozenset({spec.path[0]}), action_id=wake_up.action_id, seq=wake_up.seq,
            executor=self.name, claimed_by="",
        )  # fmt: skip
        try:
            return await self.relay.commit_quietly(
                wake_up.instance_id,
                expect=expect,
                set={"task_state": spec.claimed_as} if spec.claimed_as else {},
                action={"claimed_by": self.boot},
                effects=[started],
            )
        except Mismatch as mismatch:
            return await self._reconsider(wake_up, mismatch)

    async def _reconsider(self, wake_up: PerformStep, mismatch: Mismatch) -> Instance | None:
        """The step could not be claimed afresh: it is stale (drop it), at work (drop it), or a dead executor's."""
        stored = mismatch.instance
        action = stored.action if stored else None
        if stored and action and _is_for(action, wake_up, self.name) and self._may_take_over(stored, action):
            return await self._take_over(stored, action)
        telemetry.STEPS.labels(wake_up.step, "dropped").inc()
        log.info("step.dropped", instance_id=wake_up.instance_id, step=wake_up.step, why=str(mismatch))
        return None

    def _may_take_over(self, instance: Instance, action: ActionState) -> bool:
        running = self._runs.get(instance.id)
        if action.claimed_by == self.boot:
            return running is None or running[0].key != _key(action)
        allowance = timedelta(seconds=self._settings.step_allowance)
        return self._is_only_one or datetime.now(UTC) - action.progressed_at > allowance

    async def _take_over(self, instance: Instance, action: ActionState) -> Instance | None:
        expect = Expect(
            action_id=action.id, seq=action.step.seq, executor=self.name,
            claimed_by=action.claimed_by or "", progressed_at=action.progressed_at,
        )  # fmt: skip
        try:
            taken = await self.relay.commit(
                instance.id, expect=expect, action={"claimed_by": self.boot, "attempt": action.attempt + 1}
            )
        except Mismatch as mismatch:
            log.info("step.not_taken_over", instance_id=instance.id, why=str(mismatch))
            return None
        log.info("step.taken_over", instance_id=instance.id, step=action.step.name, action_id=action.id)
        return taken

    def _start(self, instance: Instance, spec: StepSpec, carried: Sequence[Effect] = ()) -> None:
        action = instance.action
        if action is None:
            return
        before = self._runs.get(instance.id)
        run = StepRun(self, instance, action, spec, carried)
        task = asyncio.create_task(self._run(run, before[1] if before else None))
        self._runs[instance.id] = (run, task)
        task.add_done_callback(lambda ended: self._forget(instance.id, ended))

    def _forget(self, instance_id: str, ended: asyncio.Task[None]) -> None:
        current = self._runs.get(instance_id)
        if current is not None and current[1] is ended:
            del self._runs[instance_id]

    async def _run(self, run: StepRun, before: asyncio.Task[None] | None) -> None:
        """One step from claim to finish; a run of the same instance that it preempts is ended first."""
        structlog.contextvars.bind_contextvars(
            action_id=run.action.id, instance_id=run.instance.id, host=self.host, trace_id=run.action.trace_id
        )
        if before is not None:
            before.cancel()
            await asyncio.wait({before})
        reach(f"{run.spec.name}.after_claim")
        undo: Undo | None = None
        try:
            with telemetry.STEP_SECONDS.labels(run.spec.name).time():
                change, undo = await self._worked(run)
            reach(f"{run.spec.name}.before_finish")
            await run.commit(**{**change, "set": {**change["set"], **self._stamp()}})
        except LostOwnership as lost:
            telemetry.STEPS.labels(run.spec.name, "lost").inc()
            log.info("step.lost", step=run.spec.name, why=lost.message)
            if undo is not None:
                await undo()
        else:
            await self._ended(run.instance)

    async def _ended(self, instance: Instance) -> None:
        if self._on_end is not None:
            self._runs.pop(instance.id, None)
            await self._on_end(instance)

    async def _worked(self, run: StepRun) -> tuple[Change, Undo | None]:
        """The handler's work, or its failure, as the last write of the step."""
        try:
            if run.action.attempt > self._settings.delivery_limit:
                raise Faulty(f"step {run.spec.name} ended its executor {run.action.attempt - 1} times", rule="attempts")
            outcome = await self._handlers[run.spec.name](run)
        except LostOwnership:
            raise
        except Exception as error:  # the edge of a step: the fault is recorded on the action
            is_ours = not isinstance(error, VirtfleetError)
            log.warning("step.failed", step=run.spec.name, error=str(error), exc_info=is_ours)
            telemetry.STEPS.labels(run.spec.name, "error").inc()
            return await self._failed(run, error), None
        telemetry.STEPS.labels(run.spec.name, "success").inc()
        return succeeded(run.instance, run.action, outcome), outcome.undo

    async def _failed(self, run: StepRun, error: Exception) -> Change:
        fault = fault_of(error, self.host)
        if run.spec.on_failure in _RETRIED and self._may_try_another_host(run, error):
            retried = rescheduled if run.spec.on_failure is FailureRule.RESCHEDULE else reselected
            return retried(run.instance, run.action, fault)
        turn = moves.given_up(run.instance, run.spec.name, fault.created, is_put_back=not isinstance(error, NotCleaned))
        states = {**await self._states_after(run, error), **turn.set}
        return failed(run.instance, run.action, fault, states, turn.effects)

    def _may_try_another_host(self, run: StepRun, error: Exception) -> bool:
        tried = len(run.action.notes.get("excluded", ())) + 1
        if run.action.notes.get("forced_host"):
            return False
        return not isinstance(error, NotCleaned) and tried < self._settings.max_attempts

    async def _states_after(self, run: StepRun, error: Exception) -> dict[str, Any]:
        """The fields that a failed step leaves, by its failure rule."""
        match run.spec.on_failure:
            case FailureRule.KEEP | FailureRule.RESELECT | FailureRule.ABANDON:
                return {}
            case FailureRule.OBSERVE:
                return await self._observed(run.instance.id)
            case FailureRule.RESCHEDULE if not isinstance(error, NotCleaned):
                return {"vm_state": VmState.ERROR, "host": None, "claim": None}
        return {"vm_state": VmState.ERROR}

    async def _observed(self, instance_id: str) -> dict[str, Any]:
        power = await self._observe(instance_id) if self._observe else None
        if power is None:
            return {}
        return {"power_state": power} if power.is_on else {"power_state": power, "vm_state": VmState.ERROR}

    async def keep_renewed(self) -> None:
        """Renew the progress of every run under way, for ever; a run whose step was taken from it is stopped."""
        while True:
            await asyncio.sleep(self._settings.renew_interval)
            for run, task in list(self._runs.values()):
                try:
                    is_mine = await run.renew()
                except StoreUnavailable as error:
                    log.warning("store.unavailable", error=error.message)
                    continue
                if is_mine:
                    await run.tell_so_far()
                else:
                    task.cancel()


def _key(action: ActionState) -> tuple[str, int]:
    return action.id, action.step.seq


def _is_for(action: ActionState, wake_up: PerformStep, executor: str) -> bool:
    current = (action.id, action.step.seq, action.step.executor)
    return current == (wake_up.action_id, wake_up.seq, executor) and action.claimed_by is not None
