"""The twins of migrations and clean-ups."""

from collections.abc import Mapping
from typing import Any

import bson

from virtfleet_common.records import (
    Cleanup,
    Migration,
)
from virtfleet_common.store.memory.documents import BSON, round_trip
from virtfleet_common.store.migrations import Cleanups, MigrationQuery, Migrations


class MemoryMigrations(Migrations):
    """The twin of the migrations collection."""

    def __init__(self) -> None:
        self._documents: dict[str, dict[str, Any]] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def put(self, migration_id: str, fields: Mapping[str, Any], rank: int) -> None:
        await round_trip()
        stored = self._documents.get(migration_id, {"_id": migration_id, "rank": rank})
        said = {name: value for name, value in stored.items() if value is not None}
        document = {**stored, **fields, "rank": rank} if stored["rank"] <= rank else {**fields, **said}
        self._documents[migration_id] = bson.decode(bson.encode(document), BSON)

    async def get(self, migration_id: str) -> Migration | None:
        await round_trip()
        document = self._documents.get(migration_id, {})
        return Migration.model_validate(document) if "number" in document else None

    async def find(self, fields: Mapping[str, Any] | None = None, limit: int = 1000) -> list[Migration]:
        await round_trip()
        wanted = (fields or {}).items()
        found = [Migration.model_validate(one) for one in self._begun() if wanted <= one.items()]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)[:limit]

    async def find_page(self, query: MigrationQuery) -> list[Migration]:
        await round_trip()
        found = [one for one in map(Migration.model_validate, self._begun()) if query.matches(one)]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)[: query.limit or None]

    def _begun(self) -> list[dict[str, Any]]:
        return [one for one in self._documents.values() if "number" in one]


class MemoryCleanups(Cleanups):
    """The twin of the cleanups collection."""

    def __init__(self) -> None:
        self._records: dict[str, Cleanup] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def add(self, cleanup: Cleanup) -> None:
        await round_trip()
        self._records.setdefault(cleanup.id, cleanup)

    async def get(self, cleanup_id: str) -> Cleanup | None:
        await round_trip()
        return self._records.get(cleanup_id)

    async def find(self, host: str | None = None) -> list[Cleanup]:
        await round_trip()
        owed = [one for one in self._records.values() if host in (None, one.host)]
        return sorted(owed, key=lambda one: one.created_at)

    async def find_owing(self, instance_id: str) -> list[str]:
        await round_trip()
        return sorted({one.host for one in self._records.values() if one.instance_id == instance_id})

    async def remove(self, cleanup_id: str) -> None:
        await round_trip()
        self._records.pop(cleanup_id, None)
