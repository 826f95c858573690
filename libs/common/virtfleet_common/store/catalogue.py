"""Small collections of whole documents: flavors, images, tokens, broker users, replies."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from virtfleet_common.records import Record
from virtfleet_common.store.guard import guarded
from virtfleet_common.store.indexes import forget_after

R = TypeVar("R", bound=Record)


class Catalogue(Generic[R]):
    """Documents of one kind, each written whole."""

    def __init__(
        self,
        database: AsyncIOMotorDatabase[dict[str, Any]],
        name: str,
        record: type[R],
        *,
        unique: str | None = None,
        expire_after: float | None = None,
    ) -> None:
        self._database = database
        self._rows = database[name]
        self._record = record
        self._unique = unique
        self._expire_after = expire_after

    async def create_indexes(self) -> None:
        """Declare the indexes: the unique field, and the time after which a document (by `at`) is forgotten."""
        if self._unique:
            await self._rows.create_indexes([IndexModel([(self._unique, ASCENDING)], unique=True)])
        if self._expire_after:
            await forget_after(self._database, self._rows.name, "at", self._expire_after)

    @guarded
    async def add(self, record: R) -> bool:
        """Store a new document; False if its id or its unique field is taken."""
        try:
            await self._rows.insert_one(record.document())
        except DuplicateKeyError:
            return False
        return True

    @guarded
    async def replace(self, record: R) -> None:
        """Store a document, in place of the one with its id if there is one."""
        document = record.document()
        await self._rows.replace_one({"_id": document["_id"]}, document, upsert=True)

    @guarded
    async def get(self, id_: str) -> R | None:
        """One document by its id, or None."""
        row = await self._rows.find_one({"_id": id_})
        return self._record.model_validate(row) if row else None

    @guarded
    async def find(self, fields: Mapping[str, Any] | None = None) -> list[R]:
        """The documents whose fields equal these (a list: any of its values), ordered by id."""
        wanted = {k: {"$in": v} if isinstance(v, list) else v for k, v in (fields or {}).items()}
        return [self._record.model_validate(row) async for row in self._rows.find(wanted).sort("_id", ASCENDING)]

    @guarded
    async def delete(self, id_: str) -> bool:
        """Remove a document; False if there was none."""
        result = await self._rows.delete_one({"_id": id_})
        return result.deleted_count == 1
