"""What ties an affinity group to a host: pins in the group's own document.

A member may be claimed on a host while every pin of the other members is on that host: one conditional update of one
document, made before the host is asked. So parallel placements of a group cannot split it. A pin goes when its claim
was refused or given back; one that a crash left behind is found by the audit, because no claim belongs to it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, IndexModel

from virtfleet_common.records import Pin, ServerGroup
from virtfleet_common.store.guard import guarded


class Pins:
    """See the module's text."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._groups = database["server_groups"]

    async def create_indexes(self) -> None:
        """Declare the index that finds the groups with pins."""
        await self._groups.create_indexes([IndexModel([("pins.claim", ASCENDING)])])

    @guarded
    async def pin(self, group_id: str, pin: Pin, ignoring: Sequence[str] = ()) -> bool:
        """Tie the group to the pin's host; False if another member is tied elsewhere, or the group is not there.

        Pins on `ignoring` hosts do not count: what was there is lost. The same pin again is the same pin.
        """
        elsewhere = {"instance_id": {"$ne": pin.instance_id}, "host": {"$nin": [pin.host, *ignoring]}}
        same = {"claim": pin.claim, "host": pin.host, "by": pin.by}
        is_free = {"pins": {"$not": {"$elemMatch": elsewhere}}}
        is_new = {"pins": {"$not": {"$elemMatch": same}}}
        added = {"$push": {"pins": pin.model_dump()}}
        result = await self._groups.update_one({"_id": group_id, "$and": [is_free, is_new]}, added)
        if result.matched_count:
            return True
        return await self._groups.find_one({"_id": group_id, "pins": {"$elemMatch": same}}, {"_id": 1}) is not None

    @guarded
    async def unpin(self, group_id: str, claim: str, host: str, by: str | None = None) -> bool:
        """Take the pins of a claim on a host away, or the one of an attempt `by` alone. True if there were any."""
        mine = {"claim": claim, "host": host} | ({"by": by} if by else {})
        result = await self._groups.update_one(
            {"_id": group_id, "pins": {"$elemMatch": mine}}, {"$pull": {"pins": mine}}
        )
        return result.modified_count == 1

    @guarded
    async def find(self) -> list[ServerGroup]:
        """The groups that have pins."""
        rows = self._groups.find({"pins.claim": {"$exists": True}})
        return [ServerGroup.model_validate(row) async for row in rows]


def may_pin(group: ServerGroup, pin: Pin, ignoring: Sequence[str]) -> bool:
    """Whether no other member ties the group elsewhere, as the update's filter says it."""
    others = (one for one in group.pins if one.instance_id != pin.instance_id)
    return all(one.host in (pin.host, *ignoring) for one in others)


def new_pin(claim: str, instance_id: str, host: str, by: str) -> Pin:
    """A pin made now. Its time serves people and the audit's patience, no decision."""
    now = datetime.now(UTC)
    return Pin(claim=claim, instance_id=instance_id, host=host, by=by, at=now.replace(microsecond=0))
