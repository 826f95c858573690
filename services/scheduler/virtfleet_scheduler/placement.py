"""Choosing a host and claiming it: decide on what is known, claim, and where the claim is refused, look again."""

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from virtfleet_common import effects, telemetry
from virtfleet_common.effects import Effect
from virtfleet_common.errors import NoValidHost
from virtfleet_common.executor import StepRun
from virtfleet_common.outcomes import Undo
from virtfleet_common.records import Allocation, Flavor, Instance
from virtfleet_common.records.instance import step_id
from virtfleet_common.settings import SchedulerSettings
from virtfleet_common.states import VmState
from virtfleet_common.store import Store

from virtfleet_scheduler.claims import claim as make_claim
from virtfleet_scheduler.decide import Decision, decide
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.requests import request_for
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.view import HostView

log = structlog.get_logger()
_BEHIND = 0.05
"""Seconds that the view may be behind the database: before a refusal it gets as much to catch up."""
_REFUSALS = 2
"""A host that refused so often, though all filters let it pass, is left out."""


@dataclass(frozen=True, slots=True)
class Placed:
    """The claim that was made. `decision` None: it had been made before, by a run that did not live to tell."""

    host: str
    claim: str
    decision: Decision | None = None
    refusals: int = 0

    def explained(self, action_id: str) -> list[Effect]:
        """The effect that records on the action why this host."""
        if self.decision is None:
            return []
        told = {**self.decision.explanation(self.host), "claims_refused": self.refusals}
        return [effects.record(action_id, {"explanation": told})]


class Placement:
    """Places guests for every step that needs a host."""

    def __init__(self, store: Store, view: HostView, rules: Rules, settings: SchedulerSettings) -> None:
        self._store = store
        self._view = view
        self._rules = rules
        self._settings = settings

    async def place(
        self, run: StepRun, flavor: Flavor | None = None, *, excluded: Collection[str] = (), **more: Any
    ) -> Placed:
        """`choose` for a step: the claim is named by action and step, hosts that were tried are excluded, and the fault
        of the last one is told when none is left."""
        notes = run.action.notes
        try:
            return await self.choose(
                run.instance,
                flavor or run.instance.flavor,
                step_id(run.action.id, run.action.step.seq),
                excluded={*excluded, *(host for host in notes.get("excluded", ()) if host)},
                is_first=not run.is_resumed,
                **more,
            )
        except NoValidHost as none:
            raise _with_last_fault(none, notes.get("last_fault")) from none

    async def choose(
        self,
        instance: Instance,
        flavor: Flavor,
        claim: str,
        *,
        excluded: Collection[str] = (),
        forced_host: str | None = None,
        lost: Collection[str] = (),
        is_first: bool = False,
    ) -> Placed:
        """Claim, under the name `claim`, the best host for `instance` at the size of `flavor`.

        `forced_host` is verified, not trusted. `lost` hosts are down for good: no guest goes there, and members of an
        affinity group there do not tie it. `is_first`: this claim was surely not made before; otherwise the host that
        has it is the answer. Raises NoValidHost, with the explanation.
        """
        if not is_first and (host := await self._store.hosts.find_claim(claim)) is not None:
            return Placed(host, claim)
        search = _Search(self, instance, flavor, claim, excluded, forced_host, lost)
        with telemetry.PLACEMENT_SECONDS.time():
            return await search.run()

    def undo(self, run: StepRun, placed: Placed) -> Undo:
        """Takes the claim back when the action was taken from this scheduler, unless another handed over with it."""
        return partial(self._give_back, run.instance.id, placed)

    async def _give_back(self, instance_id: str, placed: Placed) -> None:
        """While the step that names the claim is the current one, another scheduler executes it, and may be about to
        hand over with that claim. Should it not, the audit finds the claim."""
        stored = await self._store.instances.get(instance_id)
        action = stored.action if stored else None
        if action is not None and placed.claim == step_id(action.id, action.step.seq):
            return
        held = set() if stored is None else {(stored.claim, stored.host)}
        if stored is not None and stored.move is not None:
            held |= {(stored.move.claim, stored.move.destination), (stored.move.source_claim, stored.move.source)}
        if (placed.claim, placed.host) not in held:
            await self._store.hosts.release(instance_id, placed.claim, placed.host)

    async def request_of(
        self, instance: Instance, flavor: Flavor, excluded: Collection[str], forced: str | None, lost: Collection[str]
    ) -> Request:
        """What is to be placed, with groups and hints as they are now."""
        return await request_for(
            self._store, instance_id=instance.id, project_id=instance.project_id, flavor=flavor, image=instance.image,
            hints=instance.hints, availability_zone=_zone_for(instance), excluded=excluded, forced_host=forced,
            lost=lost,
        )  # fmt: skip

    async def decided(self, request: Request) -> Decision:
        """A decision on what is known now."""
        return decide(await self._view.current(), request, self._rules)

    async def try_claim(self, host: str, wanted: Allocation, request: Request, lost: Collection[str]) -> bool:
        """Claim; what is asked for is held in the view meanwhile, so that others at the same time look elsewhere."""
        columns, amounts = await self._view.current(), (request.vcpus, request.ram_mb, request.disk_gb)
        columns.hold(host, *amounts)
        try:
            is_taken = await make_claim(self._store, host, wanted, request.group, list(lost))
        finally:
            columns.hold(host, *amounts, times=-1)
        if is_taken:
            columns.note_claimed(host, *amounts)
        else:
            await self._view.refresh(host)
        return is_taken

    @property
    def tries(self) -> int:
        """Claims that one placement tries."""
        return self._settings.claim_tries


def _zone_for(instance: Instance) -> str | None:
    """As it was asked for; but the host that may be named with it is for the creation alone, or it could never move."""
    asked = instance.availability_zone
    return asked if asked is None or instance.vm_state is VmState.BUILDING else asked.partition(":")[0]


class _Search:
    """One placement, from the first decision to a claim."""

    def __init__(
        self,
        placement: Placement,
        instance: Instance,
        flavor: Flavor,
        claim: str,
        excluded: Collection[str],
        forced_host: str | None,
        lost: Collection[str],
    ) -> None:
        self._placement = placement
        self._instance = instance
        self._flavor = flavor
        self._claim = claim
        self._excluded = frozenset(excluded)
        self._forced_host = forced_host
        self._lost = frozenset(lost)
        self._refusals: Counter[str] = Counter()

    async def run(self) -> Placed:
        """Raises NoValidHost when no host is left, or claims were refused too often."""
        request, decision = await self._decided()
        for _ in range(self._placement.tries):
            if not decision.hosts:
                break
            host = decision.hosts[0]
            if await self._placement.try_claim(host, self._wanted(request), request, self._lost):
                return Placed(host, self._claim, decision, self._refusals.total())
            self._refusals[host] += 1
            request, decision = await self._decided()
        raise NoValidHost("No valid host was found.", rule="placement", explanation=self._explanation(decision))

    async def _decided(self) -> tuple[Request, Decision]:
        """A decision; one that finds nothing is made again once the view has had time to catch up."""
        request = await self._request()
        decision = await self._placement.decided(request)
        if not decision.hosts:
            await asyncio.sleep(_BEHIND)
            request = await self._request()
            decision = await self._placement.decided(request)
        return request, decision

    async def _request(self) -> Request:
        stubborn = {host for host, count in self._refusals.items() if count >= _REFUSALS}
        excluded = self._excluded | self._lost | stubborn
        return await self._placement.request_of(
            self._instance, self._flavor, excluded, self._forced_host, self._lost
        )  # fmt: skip

    def _wanted(self, request: Request) -> Allocation:
        return Allocation(
            claim=self._claim,
            instance_id=self._instance.id,
            vcpus=request.vcpus,
            ram_mb=request.ram_mb,
            disk_gb=request.disk_gb,
            group=request.group.id if request.group else None,
        )

    def _explanation(self, decision: Decision) -> dict[str, Any]:
        return {**decision.explanation(), "claims_refused": self._refusals.total()}


def _with_last_fault(none: NoValidHost, last: Any) -> NoValidHost:
    """The refusal when no host is left, with the fault of the last host that was tried."""
    if not last:
        return none
    message = f"{none.message} The last host tried said: {last['message']}"
    return NoValidHost(message, rule=none.rule, **none.facts)
