"""The twins of the actions' history and of the catalogues."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from virtfleet_common.records import (
    ActionRecord,
)
from virtfleet_common.store.actions import Actions
from virtfleet_common.store.catalogue import Catalogue
from virtfleet_common.store.memory.documents import R, has_fields, round_trip, stored, updated


class MemoryActions(Actions):
    """The twin of the actions collection."""

    def __init__(self) -> None:
        self._records: dict[str, ActionRecord] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def put(self, action_id: str, fields: Mapping[str, Any]) -> None:
        await round_trip()
        stored = self._records.get(action_id) or ActionRecord(id=action_id)
        self._records[action_id] = updated(stored, {"$set": fields})

    async def get(self, action_id: str) -> ActionRecord | None:
        await round_trip()
        return self._records.get(action_id)

    async def find(self, instance_id: str, limit: int = 1000) -> list[ActionRecord]:
        await round_trip()
        long_ago = datetime.min.replace(tzinfo=UTC)
        mine = [one for one in self._records.values() if one.instance_id == instance_id]
        return sorted(mine, key=lambda one: one.start or long_ago, reverse=True)[: limit or None]


class MemoryCatalogue(Catalogue[R]):
    """The twin of a small collection."""

    def __init__(self, record: type[R], *, unique: str | None = None) -> None:
        self._records: dict[str, R] = {}
        self._record = record
        self._unique = unique

    @property
    def records(self) -> dict[str, R]:
        """What is stored."""
        return self._records

    async def create_indexes(self) -> None:
        """None here."""

    async def add(self, record: R) -> bool:
        await round_trip()
        id_ = record.document()["_id"]
        if id_ in self._records or self._is_taken(record):
            return False
        self._records[id_] = stored(record)
        return True

    async def replace(self, record: R) -> None:
        await round_trip()
        self._records[record.document()["_id"]] = stored(record)

    async def get(self, id_: str) -> R | None:
        await round_trip()
        return self._records.get(id_)

    async def find(self, fields: Mapping[str, Any] | None = None) -> list[R]:
        await round_trip()
        return [one for _, one in sorted(self._records.items()) if has_fields(one.document(), fields or {})]

    async def delete(self, id_: str) -> bool:
        await round_trip()
        return self._records.pop(id_, None) is not None

    def _is_taken(self, record: R) -> bool:
        unique = self._unique
        return unique is not None and any(getattr(one, unique) == getattr(record, unique) for one in self._all())

    def _all(self) -> Iterable[R]:
        return self._records.values()
