"""The scheduler: keeps its view of the hosts, takes steps that need a host, and explains placements."""

from virtfleet_common.bus import COMMANDS, QueueSpec
from virtfleet_common.executor import StepExecutor
from virtfleet_common.service import Backbone, backbone, repeat, run, until_stopped
from virtfleet_common.settings import SchedulerSettings

from virtfleet_scheduler import explain
from virtfleet_scheduler.placement import Placement
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.steps import Selecting
from virtfleet_scheduler.view import HostView


async def serve(settings: SchedulerSettings) -> None:
    """Take steps and questions until stopped."""
    rules = Rules.of(settings)
    async with backbone("scheduler", settings) as base:
        view = HostView(base.store, settings)
        executor = _executor(base, settings, Placement(base.store, view, rules, settings))
        explainer = explain.Explainer(base.store, base.bus, view, rules)
        steps = base.bus.consume(_queue(settings), executor.take)
        questions = base.bus.consume(explain.QUEUE, explainer.take)
        async with steps, questions:
            counting = repeat(settings.io_ops_interval, view.count_io_ops)
            await until_stopped(view.follow(), counting, executor.keep_renewed())
        await executor.stop()


def _queue(settings: SchedulerSettings) -> QueueSpec:
    return QueueSpec(
        "virtfleet.scheduler",
        [(COMMANDS, "scheduler.*")],
        prefetch=settings.prefetch,
        delivery_limit=settings.delivery_limit,
    )


def _executor(base: Backbone, settings: SchedulerSettings, placement: Placement) -> StepExecutor:
    selecting = Selecting(placement, base.store, settings.fence_timeout)
    return StepExecutor(
        name="scheduler",
        boot=base.boot,
        host=None,
        store=base.store,
        relay=base.relay,
        settings=settings,
        handlers={
            "select": selecting.select,
            "select_destination": selecting.select_destination,
            "select_shelter": selecting.select_shelter,
        },
    )


def main() -> None:
    """The command `virtfleet-scheduler`."""
    settings = SchedulerSettings()
    run("scheduler", settings, lambda: serve(settings))


if __name__ == "__main__":
    main()
