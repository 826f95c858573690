"""The columns, kept current: read whole at first and now and then, changed by what the database tells of commits."""

import asyncio
import time
from datetime import UTC, datetime

import structlog
from virtfleet_common.errors import Faulty
from virtfleet_common.settings import SchedulerSettings
from virtfleet_common.states import REBUILD_TASKS, RESIZE_TASKS, TaskState
from virtfleet_common.store import Store
from virtfleet_common.store.host_feed import HostNews

from virtfleet_scheduler.columns import HostColumns

log = structlog.get_logger()
_PAUSE = 1.0
_BUSY_TASKS = (
    RESIZE_TASKS
    | REBUILD_TASKS
    | {TaskState.NETWORKING, TaskState.BLOCK_DEVICE_MAPPING, TaskState.SPAWNING}
)  # fmt: skip


class HostView:
    """What this scheduler knows of the hosts. It may be milliseconds behind: claims are what decides."""

    def __init__(self, store: Store, settings: SchedulerSettings) -> None:
        self._store = store
        self._settings = settings
        self._loaded_at = float("-inf")
        self._columns = HostColumns(failure_half_life=settings.failure_half_life, seed=settings.placement_seed)

    async def current(self) -> HostColumns:
        """The columns, as of now. Raises StoreUnavailable where they were never read."""
        if self._loaded_at == float("-inf"):
            await self.reload()
        self._columns.as_of = datetime.now(UTC)
        return self._columns

    async def reload(self) -> None:
        """Read all hosts and aggregates."""
        changes = await self._store.host_feed.read()
        await self._take(HostNews(changes, is_whole=True, aggregates=True))

    async def refresh(self, host: str) -> None:
        """Read one host: a claim that it refused shows that the view is behind."""
        self._columns.apply(await self._store.host_feed.read([host]))

    async def follow(self) -> None:
        """Take what the database tells, for ever; begin anew where the stream breaks."""
        while True:
            try:
                async for news in self._store.host_feed.follow():
                    await self._take(news)
                    if time.monotonic() - self._loaded_at > self._settings.view_reload_interval:
                        await self.reload()
            except Faulty as error:
                log.warning("view.stream_broken", error=error.message)
            await asyncio.sleep(_PAUSE)

    async def count_io_ops(self) -> None:
        """Count the builds and moves under way."""
        self._columns.set_io_ops(await self._store.instances.count_busy(_BUSY_TASKS))

    async def _take(self, news: HostNews) -> None:
        if news.aggregates:
            self._columns.set_aggregates(await self._store.aggregates.find())
        if news.is_whole:
            self._columns.replace_all(news.changes)
            self._loaded_at = time.monotonic()
        else:
            self._columns.apply(news.changes)
