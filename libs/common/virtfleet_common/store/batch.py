"""Writes that nobody's decision waits for, gathered: while one bulk write is under way, the next ones collect."""

import asyncio
from collections.abc import Sequence
from typing import Any

from motor.motor_asyncio import AsyncIOMotorCollection
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from virtfleet_common.errors import StoreUnavailable

_LARGEST = 1000
_BUSY = 4
_SPACING = 0.025
"""Seconds between two bulk writes once more than _BUSY callers share one: a round trip costs more than the wait."""


class Batcher:
    """Bulk writes to one collection. With one caller a write goes out at once; under load they share a round trip."""

    def __init__(self, rows: AsyncIOMotorCollection[dict[str, Any]]) -> None:
        self._rows = rows
        self._waiting: list[tuple[Sequence[UpdateOne], asyncio.Future[None]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def add(self, writes: Sequence[UpdateOne]) -> None:
        """Return when the writes are confirmed. They must be idempotent and independent of one another's order."""
        if not writes:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((writes, done))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_LARGEST], self._waiting[_LARGEST:]
            is_busy = len(batch) > _BUSY
            try:
                await self._rows.bulk_write([write for writes, _ in batch for write in writes], ordered=False)
            except BulkWriteError:  # one write that is refused must not fail those it was gathered with
                for writes, done in batch:
                    _settle(done, await self._outcome(writes))
            except Exception as error:  # handed to those who wait
                for _, done in batch:
                    _settle(done, StoreUnavailable(f"the database did not confirm: {error}"))
            else:
                for _, done in batch:
                    _settle(done, None)
            if is_busy:
                await asyncio.sleep(_SPACING)

    async def _outcome(self, writes: Sequence[UpdateOne]) -> Exception | None:
        try:
            await self._rows.bulk_write(list(writes), ordered=False)
        except Exception as error:  # handed to the one who waits
            return StoreUnavailable(f"the database did not confirm: {error}")
        return None


def _settle(done: asyncio.Future[None], outcome: Exception | None) -> None:
    if done.done():  # its caller was cancelled
        return
    if outcome is None:
        done.set_result(None)
    else:
        done.set_exception(outcome)
