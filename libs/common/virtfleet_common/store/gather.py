"""Claims, gathered: while one bulk write is under way, the next ones collect, and share a round trip.

Each claim stays one conditional update of one document. A bulk write tells how many of its updates matched, not which;
where all did, all claims are made, else one look tells which are there.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from motor.motor_asyncio import AsyncIOMotorCollection
from pymongo import UpdateOne

from virtfleet_common.errors import StoreUnavailable

_LARGEST = 200


@dataclass(frozen=True, slots=True)
class _Waiting:
    host: str
    claim: str
    update: UpdateOne
    outcome: asyncio.Future[bool]


class ClaimGatherer:
    """The claims of one process. With one at a time, each goes out at once."""

    def __init__(self, rows: AsyncIOMotorCollection[dict[str, Any]]) -> None:
        self._rows = rows
        self._waiting: list[_Waiting] = []
        self._flushing: asyncio.Task[None] | None = None

    async def claim(self, host: str, claim: str, condition: Mapping[str, Any], update: Mapping[str, Any]) -> bool:
        """Whether the host has the claim, now or already. Raises StoreUnavailable."""
        outcome: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(host, claim, UpdateOne(condition, update), outcome))
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await outcome

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_LARGEST], self._waiting[_LARGEST:]
            try:
                taken = await self._taken(batch)
            except Exception as error:  # handed to those who wait
                for one in batch:
                    if not one.outcome.done():
                        one.outcome.set_exception(StoreUnavailable(f"the database did not confirm: {error}"))
            else:
                for one in batch:
                    if not one.outcome.done():  # else its caller was cancelled
                        one.outcome.set_result((one.host, one.claim) in taken)

    async def _taken(self, batch: Sequence[_Waiting]) -> set[tuple[str, str]]:
        result = await self._rows.bulk_write([one.update for one in batch], ordered=False)
        asked = {(one.host, one.claim) for one in batch}
        if result.matched_count == len(batch):
            return asked
        hosts, claims = {host for host, _ in asked}, {claim for _, claim in asked}
        there = self._rows.find(
            {"_id": {"$in": list(hosts)}, "allocations.claim": {"$in": list(claims)}}, {"allocations.claim": 1}
        )
        return {(row["_id"], one["claim"]) async for row in there for one in row["allocations"]} & asked
