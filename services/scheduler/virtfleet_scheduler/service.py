"""The scheduler: takes the step `select`, decides, claims, and hands the action over to the chosen host."""

from functools import partial

from virtfleet_common import effects
from virtfleet_common.bus import COMMANDS, QueueSpec
from virtfleet_common.errors import NoValidHost
from virtfleet_common.executor import StepExecutor, StepRun
from virtfleet_common.failpoints import reach
from virtfleet_common.outcomes import HandOver, Outcome
from virtfleet_common.records import Allocation
from virtfleet_common.service import Backbone, backbone, run, until_stopped
from virtfleet_common.settings import SchedulerSettings
from virtfleet_common.store import Store

from virtfleet_scheduler.decide import Decision, Request, decide


class Placement:
    """The step `select`: which host takes the guest."""

    def __init__(self, store: Store, settings: SchedulerSettings) -> None:
        self._store = store
        self._settings = settings

    async def select(self, run: StepRun) -> Outcome:
        """Claim the best host that accepts. Raises NoValidHost with the explanation.

        The claim is named by action and step, so that a step that runs again finds the claim it made before.
        """
        claim = f"{run.action.id}:{run.action.step.seq}"
        host, decision = await self._store.hosts.find_claim(claim), None
        if host is None:
            host, decision = await self._claim_best(run, claim)
        reach("select.middle")
        explained = [effects.record(run.action.id, {"explanation": decision.explanation()})] if decision else []
        placed = {"host": host, "claim": claim, "epoch": run.instance.epoch + 1}
        return HandOver("create", host, placed, effects=explained, undo=partial(self._give_back, run, claim))

    async def _give_back(self, run: StepRun, claim: str) -> None:
        """The action was taken from this scheduler: its claim goes, unless another one handed over with it."""
        stored = await self._store.instances.get(run.instance.id)
        if stored is None or stored.claim != claim:
            await self._store.hosts.release(run.instance.id, claim)

    async def _claim_best(self, run: StepRun, claim: str) -> tuple[str, Decision]:
        instance, flavor = run.instance, run.instance.flavor
        excluded = frozenset(run.action.notes.get("excluded", ()))
        request = Request(flavor.vcpus, flavor.ram_mb, flavor.disk_gb, excluded, instance.availability_zone)
        decision = decide(await self._store.hosts.find(), request)
        wanted = Allocation(
            claim=claim,
            instance_id=instance.id,
            vcpus=flavor.vcpus,
            ram_mb=flavor.ram_mb,
            disk_gb=flavor.disk_gb,
        )
        for host in decision.hosts[: self._settings.claim_tries]:
            if await self._store.hosts.claim(host, wanted):
                return host, decision
        raise no_valid_host(run, decision)


def no_valid_host(run: StepRun, decision: Decision) -> NoValidHost:
    """The refusal when no host is left, with the fault of the last host that was tried."""
    last = run.action.notes.get("last_fault")
    reason = f" The last host tried said: {last['message']}" if last else ""
    return NoValidHost(f"No valid host was found.{reason}", rule="placement", explanation=decision.explanation())


async def serve(settings: SchedulerSettings) -> None:
    """Take steps until stopped."""
    async with backbone("scheduler", settings) as base:
        executor = _executor(base, settings)
        queue = QueueSpec(
            "virtfleet.scheduler",
            [(COMMANDS, "scheduler.*")],
            prefetch=settings.prefetch,
            delivery_limit=settings.delivery_limit,
        )
        async with base.bus.consume(queue, executor.take):
            await until_stopped(executor.keep_renewed())
        await executor.stop()


def _executor(base: Backbone, settings: SchedulerSettings) -> StepExecutor:
    placement = Placement(base.store, settings)
    return StepExecutor(
        name="scheduler",
        boot=base.boot,
        host=None,
        store=base.store,
        relay=base.relay,
        settings=settings,
        handlers={"select": placement.select},
    )


def main() -> None:
    """The command `virtfleet-scheduler`."""
    settings = SchedulerSettings()
    run("scheduler", settings, lambda: serve(settings))


if __name__ == "__main__":
    main()
