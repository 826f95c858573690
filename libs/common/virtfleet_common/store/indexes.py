"""Indexes that forget documents, whose age limit is a setting and so may change."""

from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, IndexModel
from pymongo.errors import OperationFailure

_INDEX_OPTIONS_CONFLICT = 85


async def forget_after(database: AsyncIOMotorDatabase[dict[str, Any]], name: str, field: str, seconds: float) -> None:
    """Have documents deleted `seconds` after the time in `field`, whatever the limit was before."""
    limit = int(seconds)
    try:
        await database[name].create_indexes([IndexModel([(field, ASCENDING)], expireAfterSeconds=limit)])
    except OperationFailure as error:
        if error.code != _INDEX_OPTIONS_CONFLICT:
            raise
        changed = {"keyPattern": {field: ASCENDING}, "expireAfterSeconds": limit}
        await database.command("collMod", name, index=changed)
