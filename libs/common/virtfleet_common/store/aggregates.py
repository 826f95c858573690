"""Host aggregates: few documents, changed by admins alone, each change one conditional write."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument
from pymongo.errors import DuplicateKeyError

from virtfleet_common.errors import StoreUnavailable
from virtfleet_common.records import Aggregate
from virtfleet_common.store.guard import guarded

_TRIES = 20


class Aggregates:
    """Numbered from 1 on, as Nova does; the name is unique."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._rows = database["aggregates"]

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes([IndexModel([("name", ASCENDING)], unique=True)])

    @guarded
    async def create(self, name: str, metadata: Mapping[str, str]) -> Aggregate | None:
        """A new aggregate without hosts; None if the name is taken."""
        for _ in range(_TRIES):
            last = await self._rows.find_one({}, {"_id": 1}, sort=[("_id", DESCENDING)])
            new = new_aggregate(last["_id"] + 1 if last else 1, name, metadata)
            try:
                await self._rows.insert_one(new.document())
            except DuplicateKeyError:  # its name or its number
                if await self._rows.find_one({"name": name}, {"_id": 1}):
                    return None
            else:
                return await self.get(new.id)
        raise StoreUnavailable("the aggregates change too fast")

    @guarded
    async def get(self, id_: int) -> Aggregate | None:
        """One aggregate, or None."""
        row = await self._rows.find_one({"_id": id_})
        return Aggregate.model_validate(row) if row else None

    @guarded
    async def find(self) -> list[Aggregate]:
        """Every aggregate, by number."""
        return [Aggregate.model_validate(row) async for row in self._rows.find().sort("_id", ASCENDING)]

    @guarded
    async def change(
        self, id_: int, *, name: str | None = None, metadata: Mapping[str, str | None] | None = None
    ) -> Aggregate | None:
        """Rename an aggregate, and set metadata (None takes a key away). None: there is no such aggregate, or another
        one has the name."""
        fields: dict[str, Any] = {"metadata": _merged(metadata or {}), "updated_at": "$$NOW"}
        if name is not None:
            fields["name"] = {"$literal": name}
        try:
            row = await self._rows.find_one_and_update(
                {"_id": id_}, [{"$set": fields}], return_document=ReturnDocument.AFTER
            )
        except DuplicateKeyError:
            return None
        return Aggregate.model_validate(row) if row else None

    @guarded
    async def add_host(self, id_: int, host: str) -> Aggregate | None:
        """Put a host into an aggregate; None if it is in it already, or there is no such aggregate."""
        update = {"$push": {"hosts": host}, "$currentDate": {"updated_at": True}}
        return await self._update({"_id": id_, "hosts": {"$ne": host}}, update)

    @guarded
    async def remove_host(self, id_: int, host: str) -> Aggregate | None:
        """Take a host out of an aggregate; None if it is not in it, or there is no such aggregate."""
        update = {"$pull": {"hosts": host}, "$currentDate": {"updated_at": True}}
        return await self._update({"_id": id_, "hosts": host}, update)

    @guarded
    async def delete(self, id_: int) -> bool:
        """Remove an aggregate that holds no hosts; False if it holds some, or there is no such aggregate."""
        result = await self._rows.delete_one({"_id": id_, "hosts": []})
        return result.deleted_count == 1

    async def _update(self, wanted: Mapping[str, Any], update: Mapping[str, Any]) -> Aggregate | None:
        row = await self._rows.find_one_and_update(wanted, update, return_document=ReturnDocument.AFTER)
        return Aggregate.model_validate(row) if row else None


def _merged(metadata: Mapping[str, str | None]) -> Any:
    """The stored metadata with these keys set or taken away, as an expression: keys may hold dots and dollars."""
    merged: Any = "$metadata"
    for key, value in metadata.items():
        new = "$$REMOVE" if value is None else {"$literal": value}
        merged = {"$setField": {"field": {"$literal": key}, "input": merged, "value": new}}
    return merged


def new_aggregate(number: int, name: str, metadata: Mapping[str, str]) -> Aggregate:
    """An aggregate as it is made."""
    now = datetime.now(UTC)
    return Aggregate(id=number, uuid=str(uuid4()), name=name, metadata=metadata, created_at=now, updated_at=now)
