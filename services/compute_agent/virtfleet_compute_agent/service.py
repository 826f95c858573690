"""The compute agent: one per host. Resumes what it had claimed, then takes steps, and reports."""

import socket
from contextlib import AsyncExitStack
from functools import partial

import structlog
from virtfleet_common.bus import COMMANDS, QueueSpec
from virtfleet_common.clock import SystemClock
from virtfleet_common.executor import StepExecutor
from virtfleet_common.ports import HypervisorFacts
from virtfleet_common.records import Resources
from virtfleet_common.service import Backbone, backbone, repeat, run, until_stopped
from virtfleet_common.settings import AgentSettings

from virtfleet_compute_agent import cleanups, console, identity, steps
from virtfleet_compute_agent.heartbeat import Reporter
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_compute_agent.steps.context import HostContext

log = structlog.get_logger()


async def serve(settings: AgentSettings) -> None:
    """Own the host until stopped."""
    host = settings.host or socket.gethostname()
    with identity.only_agent(settings.state_dir):
        uuid = identity.load(settings.state_dir, host)
        async with backbone(f"compute.{host}", settings) as base:
            identity.check(await base.store.hosts.get(host), uuid)
            await _serve(base, settings, host, uuid)


async def _serve(base: Backbone, settings: AgentSettings, host: str, uuid: str) -> None:
    hypervisor = LibvirtHypervisor(settings)
    async with AsyncExitStack() as stack:
        await hypervisor.open()
        stack.push_async_callback(hypervisor.close)
        facts = await hypervisor.facts()
        await _register(base, settings, host, uuid, facts)
        reporter = Reporter(host, base.boot, hypervisor, base.bus, SystemClock())
        cleaner = cleanups.Cleaner(host, base.store, hypervisor)
        context = HostContext(hypervisor, settings, cleaner.clean)
        executor = StepExecutor(
            name=f"compute.{host}",
            boot=base.boot,
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
        stack.push_async_callback(executor.stop)
        resumed = await executor.resume()
        log.info("agent.started", host=host, resumed=resumed, hypervisor=facts.hypervisor_type)
        await stack.enter_async_context(base.bus.consume(_queue(host, settings), executor.take))
        await stack.enter_async_context(base.bus.consume(cleanups.queue(host), cleaner.take))
        consoles = console.Consoles(host, hypervisor, base.bus)
        await stack.enter_async_context(base.bus.consume(console.queue(host), consoles.take))
        beats = repeat(settings.heartbeat_interval, reporter.beat)
        owed = repeat(settings.cleanup_interval, cleaner.clean_all)
        await until_stopped(beats, owed, reporter.follow(executor), executor.keep_renewed())


def _queue(host: str, settings: AgentSettings) -> QueueSpec:
    return QueueSpec(
        f"virtfleet.compute.{host}",
        [(COMMANDS, f"compute.{host}.*")],
        prefetch=settings.prefetch,
        delivery_limit=settings.delivery_limit,
    )


async def _register(base: Backbone, settings: AgentSettings, host: str, uuid: str, facts: HypervisorFacts) -> None:
    fields = {
        "boot_id": base.boot,
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
