"""What every service does around its own work: settings, logs, connections, health, and an orderly end."""

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import stamina
import structlog
import uvloop

from virtfleet_common import logging, telemetry
from virtfleet_common.errors import Faulty, StoreUnavailable
from virtfleet_common.rabbit import RabbitBus
from virtfleet_common.relay import Relay
from virtfleet_common.settings import CommonSettings
from virtfleet_common.store import Store

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Backbone:
    """What a service stands on. `boot` is a new id for each start of the process."""

    store: Store
    bus: RabbitBus
    relay: Relay
    boot: str

    async def why_not_ready(self) -> str | None:
        """Why this service cannot work now; None when it can."""
        try:
            await self.store.ping()
        except Faulty as error:
            return error.message
        return None if self.bus.is_connected else "the broker cannot be reached"


@asynccontextmanager
async def backbone(name: str, settings: CommonSettings) -> AsyncIterator[Backbone]:
    """Connect to the database (waiting for it as long as it takes) and to the broker; serve health."""
    store = Store.connect(settings)
    bus = RabbitBus(settings.amqp_url, name=name, publish_timeout=settings.publish_timeout)
    relay = Relay(store, bus, source=f"virtfleet/{name}")
    base = Backbone(store, bus, relay, boot=f"{name}/{uuid4().hex[:12]}")
    async with telemetry.serve_health(settings.health_host, settings.health_port, base.why_not_ready):
        await _prepared(store)
        try:
            yield base
        finally:
            await relay.delivered()
            await bus.close()
            store.close()


@stamina.retry(on=StoreUnavailable, attempts=None, timeout=None, wait_max=5.0)
async def _prepared(store: Store) -> None:
    await store.prepare()


async def until_stopped(*work: Coroutine[Any, Any, None]) -> None:
    """Run `work` until SIGTERM or SIGINT arrives; a piece of work that fails or ends stops the service."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = {asyncio.create_task(stop.wait()), *(asyncio.create_task(one) for one in work)}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def repeat(interval: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` every `interval` seconds, for ever. What fails is logged and done again next time."""
    while True:
        try:
            await work()
        except Faulty as error:
            log.warning("work.failed", work=work.__qualname__, error=error.message)
        except Exception:  # the edge of a loop
            log.exception("work.failed", work=work.__qualname__)
        await asyncio.sleep(interval)


def _spare_the_collector() -> None:
    """What was imported stays for good: the cyclic collector need not look at it again, nor look so often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def run(name: str, settings: CommonSettings, serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """The body of every service's `main`: logs set up, uvloop, `serve` to its end."""
    logging.configure(name, settings)
    log.info("service.starting")
    _spare_the_collector()
    uvloop.run(serve())
    log.info("service.stopped")
