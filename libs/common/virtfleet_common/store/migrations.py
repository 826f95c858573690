"""The history of moves (Nova's migrations) and what they left to clean up, both written by effects only.

Effects may come in any order: a move whose beginning has not come yet is not shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
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


_BEGUN: dict[str, Any] = {"number": {"$exists": True}}


@dataclass(frozen=True, slots=True)
class MigrationQuery:
    """What a list asks for; None: any. `host` is either end. Newest first; `after` is the last of the page before."""

    instance_id: str | None = None
    status: str | None = None
    type: str | None = None
    source: str | None = None
    host: str | None = None
    user_id: str | None = None
    project_id: str | None = None
    changed_since: datetime | None = None
    changed_before: datetime | None = None
    after: Migration | None = None
    limit: int = 1000

    def as_filter(self) -> dict[str, Any]:
        """This query as a MongoDB filter."""
        plain = {
            "instance_id": self.instance_id, "status": self.status, "type": self.type, "source": self.source,
            "user_id": self.user_id, "project_id": self.project_id,
        }  # fmt: skip
        clauses: list[dict[str, Any]] = [{name: value} for name, value in plain.items() if value is not None]
        if self.host is not None:
            clauses.append({"$or": [{"source": self.host}, {"destination": self.host}]})
        if self.changed_since is not None:
            clauses.append({"updated_at": {"$gte": self.changed_since}})
        if self.changed_before is not None:
            clauses.append({"updated_at": {"$lte": self.changed_before}})
        if self.after is not None:
            at, id_ = self.after.created_at, self.after.id
            clauses.append({"$or": [{"created_at": {"$lt": at}}, {"created_at": at, "_id": {"$lt": id_}}]})
        return {**_BEGUN, "$and": clauses} if clauses else _BEGUN

    def matches(self, migration: Migration) -> bool:
        """Whether a migration belongs on the list, as the filter says it."""
        return (
            self.instance_id in (None, migration.instance_id)
            and self.status in (None, migration.status)
            and self.type in (None, migration.type)
            and self.source in (None, migration.source)
            and self.host in (None, migration.source, migration.destination)
            and self.user_id in (None, migration.user_id)
            and self.project_id in (None, migration.project_id)
            and (self.changed_since is None or migration.updated_at >= self.changed_since)
            and (self.changed_before is None or migration.updated_at <= self.changed_before)
            and (self.after is None or (migration.created_at, migration.id) < (self.after.created_at, self.after.id))
        )


class Migrations:
    """One document per move. A write of a lower rank than the stored one is an old one, and changes nothing of it: it
    adds what is not there yet."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._rows = database["migrations"]

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes(INDEXES)

    @guarded
    async def put(self, migration_id: str, fields: Mapping[str, Any], rank: int) -> None:
        """Set fields of a migration, those that something of a higher rank said left out; made if it is not there."""
        new = {"$set": {**fields, "rank": rank}}
        try:
            await self._rows.update_one({"_id": migration_id, "rank": {"$lte": rank}}, new, upsert=True)
        except DuplicateKeyError:
            missing = {name: {"$ifNull": [f"${name}", {"$literal": value}]} for name, value in fields.items()}
            await self._rows.update_one({"_id": migration_id}, [{"$set": missing}])

    @guarded
    async def get(self, migration_id: str) -> Migration | None:
        """One migration, or None."""
        row = await self._rows.find_one({"_id": migration_id, **_BEGUN})
        return Migration.model_validate(row) if row else None

    @guarded
    async def find(self, fields: Mapping[str, Any] | None = None, limit: int = 1000) -> list[Migration]:
        """The migrations whose fields equal these, newest first."""
        rows = (
            self._rows.find({**_BEGUN, **(fields or {})})
            .sort([("created_at", DESCENDING), ("_id", DESCENDING)])
            .limit(limit)
        )
        return [Migration.model_validate(row) async for row in rows]

    @guarded
    async def find_page(self, query: MigrationQuery) -> list[Migration]:
        """One page, newest first."""
        order = [("created_at", DESCENDING), ("_id", DESCENDING)]
        rows = self._rows.find(query.as_filter()).sort(order).limit(query.limit)
        return [Migration.model_validate(row) async for row in rows]


class Cleanups:
    """What hosts owe. A clean-up stays until its host has done it."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._rows = database["cleanups"]

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes([IndexModel([("host", ASCENDING)]), IndexModel([("instance_id", ASCENDING)])])

    @guarded
    async def add(self, cleanup: Cleanup) -> None:
        """Remember a clean-up; one that is there already stays as it is."""
        document = cleanup.document()
        await self._rows.update_one({"_id": cleanup.id}, {"$setOnInsert": document}, upsert=True)

    @guarded
    async def get(self, cleanup_id: str) -> Cleanup | None:
        """One clean-up; None when it is done."""
        row = await self._rows.find_one({"_id": cleanup_id})
        return Cleanup.model_validate(row) if row else None

    @guarded
    async def find(self, host: str | None = None) -> list[Cleanup]:
        """What a host owes (None: every host), oldest first."""
        rows = self._rows.find({"host": host} if host else {}).sort("created_at", ASCENDING)
        return [Cleanup.model_validate(row) async for row in rows]

    @guarded
    async def find_owing(self, instance_id: str) -> list[str]:
        """The hosts that owe a clean-up of an instance, by name: what is left there may run."""
        rows = self._rows.find({"instance_id": instance_id}, {"host": 1})
        return sorted({row["host"] async for row in rows})

    @guarded
    async def remove(self, cleanup_id: str) -> None:
        """It is done."""
        await self._rows.delete_one({"_id": cleanup_id})
