"""The volumes, each in one document with its attachment: to claim a volume is one compare-and-set.

Good path: an attach claims the volume, its instance's transition commits, and the effects of that and of later
transitions settle what the attachment says, and release it. Bad path: whoever claimed dies before it commits; then
nothing in the instance's record bears the claim out, and the next who wants the volume may take it away. Why it is
safe: an attachment has an id, so what comes late for an old one finds nothing; and a claim is taken away only by the
ticket of the try that made it last.
"""

from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from virtfleet_common.records.volume import Attachment, Volume
from virtfleet_common.store.guard import guarded

INDEXES = [
    IndexModel([("project_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)]),
    IndexModel([("attachment.instance_id", ASCENDING)], sparse=True),
]
SETTLED = ("instance_id", "host", "device", "attached_at", "rank")
"""What effects write of an attachment."""


class Volumes:
    """See the module's text. Raises StoreUnavailable where the database does not confirm in time."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._rows = database["volumes"]

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes(INDEXES)

    @guarded
    async def add(self, volume: Volume) -> bool:
        """Store a new volume; False if its id is taken."""
        try:
            await self._rows.insert_one(volume.document())
        except DuplicateKeyError:
            return False
        return True

    @guarded
    async def get(self, volume_id: str) -> Volume | None:
        """One volume, or None."""
        row = await self._rows.find_one({"_id": volume_id})
        return Volume.model_validate(row) if row else None

    @guarded
    async def find(self, *, project_id: str | None = None, instance_id: str | None = None) -> list[Volume]:
        """The volumes of a project, or those that an instance has; None: any. Newest first."""
        plain = {"project_id": project_id, "attachment.instance_id": instance_id}
        wanted = {path: value for path, value in plain.items() if value is not None}
        rows = self._rows.find(wanted).sort([("created_at", DESCENDING), ("_id", DESCENDING)])
        return [Volume.model_validate(row) async for row in rows]

    @guarded
    async def claim(self, volume_id: str, attachment: Attachment) -> bool:
        """Give a free volume to an instance, or note a new ticket on an attachment of this id; False if another has
        it."""
        free_or_mine = {"$or": [{"attachment": None}, {"attachment.id": attachment.id, "attachment.rank": 0}]}
        new = {"$set": {"attachment": attachment.document()}, "$currentDate": {"updated_at": True}}
        result = await self._rows.update_one({"_id": volume_id, **free_or_mine}, new)
        return result.matched_count == 1

    @guarded
    async def settle(self, volume_id: str, attachment: Attachment) -> bool:
        """Write what an instance's record says of an attachment; False if it is over, or settled by a later one."""
        mine = {"_id": volume_id, "attachment.id": attachment.id, "attachment.rank": {"$lte": attachment.rank}}
        document = attachment.document()
        said = {f"attachment.{name}": document[name] for name in SETTLED}
        result = await self._rows.update_one(mine, {"$set": said, "$currentDate": {"updated_at": True}})
        return result.matched_count == 1

    @guarded
    async def release(self, volume_id: str, attachment_id: str, *, ticket: str | None = None) -> bool:
        """End an attachment (one with a `ticket`: if it is still that try's); False if there is none such."""
        mine = {"_id": volume_id, "attachment.id": attachment_id}
        if ticket is not None:
            mine["attachment.ticket"] = ticket
        free = {"$set": {"attachment": None}, "$currentDate": {"updated_at": True}}
        result = await self._rows.update_one(mine, free)
        return result.matched_count == 1

    @guarded
    async def release_all(self, instance_id: str) -> None:
        """End every attachment of an instance that is gone for good."""
        free = {"$set": {"attachment": None}, "$currentDate": {"updated_at": True}}
        await self._rows.update_many({"attachment.instance_id": instance_id}, free)

    @guarded
    async def delete(self, volume_id: str) -> bool:
        """Forget a volume; False if there is none, or an instance has it."""
        result = await self._rows.delete_one({"_id": volume_id, "attachment": None})
        return result.deleted_count == 1
