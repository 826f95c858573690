"""The compute agent: one per host. Puts its host in order, resumes what it had claimed, takes steps, and reports."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from uuid import uuid4

import stamina
import structlog
from virtfleet_common.bus import COMMANDS, Delivery, QueueSpec
from virtfleet_common.clock import SystemClock
from virtfleet_common.errors import Faulty, HypervisorFault, StoreUnavailable
from virtfleet_common.executor import StepExecutor
from virtfleet_common.messages import DoCleanups
from virtfleet_common.ports import Hypervisor, HypervisorFacts
from virtfleet_common.records import Resources
from virtfleet_common.service import Backbone, backbone, repeat, run, until_stopped
from virtfleet_common.settings import AgentSettings
from virtfleet_common.store import Store

from virtfleet_compute_agent import cleanups, console, identity, steps
from virtfleet_compute_agent.heartbeat import Reporter
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_compute_agent.returning import Returning
from virtfleet_compute_agent.standing import HostLost, Standing
from virtfleet_compute_agent.steps.context import HostContext
from virtfleet_compute_agent.storage import Storage

log = structlog.get_logger()
_AT_THE_DOOR = 0.5


async def serve(settings: AgentSettings) -> None:
    """Own the host until stopped."""
    host = settings.host or socket.gethostname()
    with identity.only_agent(settings.state_dir):
        async with backbone(f"compute.{host}", settings) as base, AsyncExitStack() as stack:
            hypervisor = LibvirtHypervisor(settings)
            await hypervisor.open()
            stack.push_async_callback(hypervisor.close)
            uuid = await _identified(base.store, settings, host, hypervisor)
            await until_stopped(Agent(base, settings, host, uuid, hypervisor).live())


@stamina.retry(on=(HypervisorFault, StoreUnavailable), attempts=None, timeout=None, wait_max=5.0)
async def _identified(store: Store, settings: AgentSettings, host: str, hypervisor: Hypervisor) -> str:
    """The host's uuid. Raises WrongIdentity; nothing was touched then."""
    has_guests = any(guest.is_ours for guest in await hypervisor.list_guests())
    fleet, recorded = await identity.fleet_id(store), await store.hosts.get_brief(host)
    return identity.established(settings.state_dir, host, fleet, recorded, has_guests=has_guests)


class Agent:
    """One host's agent. It lives from one registration to the next: whenever the host was lost, it returns as after a
    start."""

    def __init__(
        self, base: Backbone, settings: AgentSettings, host: str, uuid: str, hypervisor: LibvirtHypervisor
    ) -> None:
        self._base = base
        self._settings = settings
        self._host = host
        self._uuid = uuid
        self._hypervisor = hypervisor
        self._storage = Storage(base.store, hypervisor)
        self._cleaner = cleanups.Cleaner(host, base.store, hypervisor, self._storage)
        self._returning = Returning(host, base.store, hypervisor, self._cleaner, settings)
        self._kept_out: str | None = None

    async def live(self) -> None:
        """One registration after the other, for ever."""
        while True:
            boot = f"compute.{self._host}/{uuid4().hex[:12]}"
            try:
                await self._live_once(boot)
            except* HostLost as lost:
                log.warning("host.lost", host=self._host, boot=boot, why=_reason(lost))

    async def _live_once(self, boot: str) -> None:
        base, settings = self._base, self._settings
        reporter = Reporter(self._host, boot, self._hypervisor, base.bus, SystemClock())
        standing = Standing(self._host, boot, base.store, base.bus, settings, partial(self._power_off, reporter))
        async with base.bus.consume(standing.queue(), standing.hear):
            await self._until(partial(self._is_let_in, standing, reporter))
            await self._until(partial(self._registered, boot))
            async with asyncio.TaskGroup() as group:
                group.create_task(repeat(settings.heartbeat_interval, reporter.beat))
                group.create_task(standing.watch())
                group.create_task(self._work(boot, reporter))

    async def _is_let_in(self, standing: Standing, reporter: Reporter) -> bool:
        """At the door: whether the fleet hears this host and lets it in. What must not run here is stopped first."""
        await self._returning.sort_out()
        why_not = await self._returning.why_kept_out()
        if why_not is not None and why_not != self._kept_out:
            log.warning("host.kept_out", host=self._host, why=why_not)
        self._kept_out = why_not
        return why_not is None and await standing.is_heard(reporter.beat)

    async def _registered(self, boot: str) -> None:
        await self._storage.leave_mark(self._uuid)
        facts = await self._hypervisor.facts()
        await _register(self._base, boot, self._settings, self._host, self._uuid, facts)

    async def _until(self, done: Callable[[], Awaitable[object]]) -> None:
        """Again and again until it is not False and nothing failed."""
        while True:
            try:
                if await done() is not False:
                    return
            except Faulty as error:
                log.warning("host.not_ready", host=self._host, error=error.message)
            await asyncio.sleep(_AT_THE_DOOR)

    async def _work(self, boot: str, reporter: Reporter) -> None:
        """Have the host in order, then take its steps until it is lost."""
        await self._until(self._returning.take_back)
        await self._until(partial(self._returning.start_guests, boot))
        reporter.settle()
        await self._serve_steps(boot, reporter)

    async def _power_off(self, reporter: Reporter) -> None:
        """Give the guests up. The record keeps what it wants of them, for whoever runs them next."""
        reporter.settle(False)
        await self._returning.power_off()

    async def _serve_steps(self, boot: str, reporter: Reporter) -> None:
        base, settings, host = self._base, self._settings, self._host
        context = HostContext(self._hypervisor, self._storage, settings, self._cleaner.clean, base.store.instances.get)
        executor = StepExecutor(
            name=f"compute.{host}",
            boot=boot,
            host=host,
            store=base.store,
            relay=base.relay,
            settings=settings,
            handlers=steps.handlers(context),
            observe=context.power_of,
            on_end=reporter.after,
            stamp=reporter.stamp,
            is_only_one=True,
        )
        consoles = console.Consoles(host, self._hypervisor, base.bus)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(executor.stop)
            await self._until(executor.resume)
            log.info("agent.started", host=host)
            await stack.enter_async_context(base.bus.consume(_queue(host, settings), executor.take))
            await stack.enter_async_context(base.bus.consume(cleanups.queue(host), self._clean))
            await stack.enter_async_context(base.bus.consume(console.queue(host), consoles.take))
            async with asyncio.TaskGroup() as group:
                group.create_task(repeat(settings.cleanup_interval, self._cleaner.clean_all))
                group.create_task(reporter.follow(executor))
                group.create_task(executor.keep_renewed())

    async def _clean(self, delivery: Delivery) -> None:
        """Something is owed, or a guest was seen here that is not this host's any more."""
        delivery.read(DoCleanups)
        await delivery.settler.ack()
        await self._returning.sort_out()


def _reason(error: BaseException) -> str:
    """The message of what a group of tasks ended with."""
    return _reason(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else str(error)


def _queue(host: str, settings: AgentSettings) -> QueueSpec:
    return QueueSpec(
        f"virtfleet.compute.{host}",
        [(COMMANDS, f"compute.{host}.*")],
        prefetch=settings.prefetch,
        delivery_limit=settings.delivery_limit,
    )


async def _register(
    base: Backbone, boot: str, settings: AgentSettings, host: str, uuid: str, facts: HypervisorFacts
) -> None:
    fields = {
        "boot_id": boot,
        "sequence": 0,
        "is_responsive": True,
        "total": facts.total.model_dump(),
        "hypervisor_type": facts.hypervisor_type,
        "hypervisor_version": facts.version,
        "arch": facts.arch,
        "hypervisor_hostname": host,
        "host_ip": settings.host_ip,
        "availability_zone": settings.availability_zone,
    }
    await base.store.hosts.register(host, uuid=uuid, limits=limits(settings, facts.total), facts=fields)


def limits(settings: AgentSettings, total: Resources) -> Resources:
    """What may be allocated of a host: what it has, less what is reserved, times the allocation ratio."""
    return Resources(
        vcpus=(total.vcpus - settings.reserved_vcpus) * settings.cpu_allocation_ratio,
        ram_mb=(total.ram_mb - settings.reserved_ram_mb) * settings.ram_allocation_ratio,
        disk_gb=(total.disk_gb - settings.reserved_disk_gb) * settings.disk_allocation_ratio,
    )


def main() -> None:
    """The command `virtfleet-compute-agent`."""
    settings = AgentSettings()
    run("compute-agent", settings, partial(serve, settings))


if __name__ == "__main__":
    main()
