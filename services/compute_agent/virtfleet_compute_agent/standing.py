"""Whether the fleet still hears this host: by the echo of its own heartbeats, or because the record says of ever later
ones that they were heard (that the host is up it says for some time after the last).

Good path: each heartbeat comes back from the broker, and is noted in the record. Bad paths: no echo, and
the connection is made anew, for it may look alive and be deaf; nothing from the broker or the record for
`isolation_after`, and the host is isolated: with the policy `stop` its guests are powered off, before anybody starts
them elsewhere; the registration is void, because the host was declared lost, and it has to come back by the door.
Where the record shows that nobody is heard, the broker or power_sync is away, and this host is not alone: nobody is
declared lost before they are back and have listened for `host_down_after`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog
from virtfleet_common.bus import EVENTS, Bus, Delivery, QueueSpec
from virtfleet_common.errors import Faulty, StoreUnavailable
from virtfleet_common.settings import AgentSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Store

log = structlog.get_logger()
_DEAF_AFTER = 3
"""Heartbeats without an echo after which the connection is made anew."""
_ECHO_KEPT = 10.0
_QUICKLY = 0.2
"""Of a heartbeat's interval."""


class HostLost(Faulty):
    """This host was declared lost, or had to give itself up: it comes back as any host that returns."""

    code = "host_lost"


class Standing:
    """The standing of one registration, named by its boot id."""

    def __init__(
        self,
        host: str,
        boot: str,
        store: Store,
        bus: Bus,
        settings: AgentSettings,
        power_off: Callable[[], Awaitable[None]],
    ) -> None:
        self._host = host
        self._boot = boot
        self._store = store
        self._bus = bus
        self._settings = settings
        self._power_off = power_off
        self._seen_at = time.monotonic()
        self._heard_at = time.monotonic()
        self._last_seen: datetime | None = None
        self._last_heard: datetime | None = None
        self._echo = asyncio.Event()

    def queue(self) -> QueueSpec:
        """The echo of this host's heartbeats."""
        name = f"virtfleet.echo.{self._boot}"
        bindings = [(EVENTS, f"host.{self._host}.heartbeat")]
        return QueueSpec(name, bindings, is_durable=False, prefetch=1, ttl=_ECHO_KEPT, max_length=10)

    async def hear(self, delivery: Delivery) -> None:
        """The consumer of the queue: whatever comes, the way to the broker and back is open."""
        self._seen_at = self._heard_at = time.monotonic()
        self._echo.set()
        await delivery.settler.ack()

    async def is_heard(self, knock: Callable[[], Awaitable[None]]) -> bool:
        """Whether a heartbeat sent now comes back."""
        self._echo.clear()
        await knock()
        try:
            async with asyncio.timeout(self._settings.heartbeat_interval):
                await self._echo.wait()
        except TimeoutError:
            await self._rebuild_if_deaf()
            return False
        return True

    async def watch(self) -> None:
        """Look again and again, at each for itself: what hangs must hold up nothing else. Raises HostLost when this
        registration is over."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(1.0, self._look_into_record))
            group.create_task(self._every(1.0, self._rebuild_if_deaf))
            if self._settings.isolation_policy == "stop":
                group.create_task(self._every(_QUICKLY, self._give_up_if_isolated))

    async def _every(self, share: float, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(share * self._settings.heartbeat_interval)
            await look()

    async def _look_into_record(self) -> None:
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.heartbeat_interval):
                known = await self._store.hosts.get_brief(self._host)
                is_noted = known is not None and await self._is_noted(known.last_seen)
        except (StoreUnavailable, TimeoutError):
            return
        if known is None or known.boot_id != self._boot or known.state is HostState.DOWN:
            raise HostLost(f"the registration of {self._host} is void: it was declared lost")
        if is_noted:
            self._seen_at = max(self._seen_at, asked_at)

    async def _is_noted(self, last_seen: datetime | None) -> bool:
        """Whether this host was heard since the last look, or nobody was."""
        before, self._last_seen = self._last_seen, last_seen
        if last_seen != before:
            return True
        heard_before, self._last_heard = self._last_heard, await self._store.hosts.get_last_heard()
        return self._last_heard == heard_before

    async def _rebuild_if_deaf(self) -> None:
        if time.monotonic() - self._heard_at > _DEAF_AFTER * self._settings.heartbeat_interval:
            log.warning("bus.deaf", host=self._host, silence=round(time.monotonic() - self._heard_at, 1))
            self._heard_at = time.monotonic()  # for as long again
            await self._bus.rebuild()

    async def _give_up_if_isolated(self) -> None:
        silence = time.monotonic() - self._seen_at
        if silence > self._settings.isolation_after:
            await self._give_up(silence)

    async def _give_up(self, silence: float) -> None:
        """What cannot be powered off is tried again while the host is not heard. It comes back by the door, whatever
        was done by then."""
        log.error("host.isolated", host=self._host, silence=round(silence, 1))
        seen_at, is_done = self._seen_at, False
        while not is_done and self._seen_at == seen_at:
            is_done = await self._is_powered_off()
        raise HostLost(f"{self._host} was isolated for {silence:.0f} s, and gave up its guests")

    async def _is_powered_off(self) -> bool:
        try:
            await self._power_off()
        except Faulty as error:
            log.error("guests.not_powered_off", host=self._host, error=error.message)
            await asyncio.sleep(_QUICKLY * self._settings.heartbeat_interval)
            return False
        return True
