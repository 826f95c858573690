"""The history of actions (Nova's instance actions), written by effects only, each a set of dotted fields."""

from collections.abc import Mapping
from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne

from virtfleet_common.records import ActionRecord
from virtfleet_common.store.batch import Batcher
from virtfleet_common.store.guard import guarded

INDEXES = [IndexModel([("instance_id", ASCENDING), ("start", DESCENDING)])]


class Actions:
    """One document per action. Fields are only ever set, so effects may be applied again and in any order."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._rows = database["actions"]
        self._writes = Batcher(self._rows)

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes(INDEXES)

    async def put(self, action_id: str, fields: Mapping[str, Any]) -> None:
        """Set fields (dotted paths) of an action's history; made if it is not there. Gathered into bulk writes."""
        await self._writes.add([UpdateOne({"_id": action_id}, {"$set": dict(fields)}, upsert=True)])

    @guarded
    async def get(self, action_id: str) -> ActionRecord | None:
        """One action's history, or None."""
        row = await self._rows.find_one({"_id": action_id})
        return ActionRecord.model_validate(row) if row else None

    @guarded
    async def find(self, instance_id: str, limit: int = 1000) -> list[ActionRecord]:
        """The actions of an instance, newest first."""
        rows = self._rows.find({"instance_id": instance_id}).sort("start", DESCENDING).limit(limit)
        return [ActionRecord.model_validate(row) async for row in rows]
