"""The history of moves (Nova's migrations) and what they left to clean up, both written by effects only."""

from collections.abc import Mapping
from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from virtfleet_common.records import Cleanup, Migration
from virtfleet_common.store.guard import guarded

INDEXES = [
    IndexModel([("instance_id", ASCENDING), ("created_at", DESCENDING)]),
    IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)]),
    IndexModel([("number", ASCENDING)]),
]


class Migrations:
    """One document per move. A write of a lower rank than the stored one is an old one, and changes nothing."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._rows = database["migrations"]

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes(INDEXES)

    @guarded
    async def put(self, migration_id: str, fields: Mapping[str, Any], rank: int) -> None:
        """Set fields of a migration, unless something of a higher rank was written before; made if it is not there."""
        new = {"$set": {**fields, "rank": rank}}
        try:
            await self._rows.update_one({"_id": migration_id, "rank": {"$lte": rank}}, new, upsert=True)
        except DuplicateKeyError:
            return  # it is there with a higher rank

    @guarded
    async def get(self, migration_id: str) -> Migration | None:
        """One migration, or None."""
        row = await self._rows.find_one({"_id": migration_id})
        return Migration.model_validate(row) if row else None

    @guarded
    async def find(self, fields: Mapping[str, Any] | None = None, limit: int = 1000) -> list[Migration]:
        """The migrations whose fields equal these, newest first."""
        rows = self._rows.find(dict(fields or {})).sort([("created_at", DESCENDING), ("_id", DESCENDING)]).limit(limit)
        return [Migration.model_validate(row) async for row in rows]


class Cleanups:
    """What hosts owe. A clean-up stays until its host has done it."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._rows = database["cleanups"]

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes([IndexModel([("host", ASCENDING)])])

    @guarded
    async def add(self, cleanup: Cleanup) -> None:
        """Remember a clean-up; one that is there already stays as it is."""
        document = cleanup.document()
        await self._rows.update_one({"_id": cleanup.id}, {"$setOnInsert": document}, upsert=True)

    @guarded
    async def find(self, host: str | None = None) -> list[Cleanup]:
        """What a host owes (None: every host), oldest first."""
        rows = self._rows.find({"host": host} if host else {}).sort("created_at", ASCENDING)
        return [Cleanup.model_validate(row) async for row in rows]

    @guarded
    async def remove(self, cleanup_id: str) -> None:
        """It is done."""
        await self._rows.delete_one({"_id": cleanup_id})
