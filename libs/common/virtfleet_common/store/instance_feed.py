"""The instances as reports are compared with them: all of them once, then each that changed, as it is now.

A change stream says which instances changed, and they are read together. The database leaves out what no comparison
needs: how an action begins and what it does on its way, for what is at work is let alone until it is at rest again. A
stream that breaks is not resumed: whoever follows begins again with all instances, which mends what was missed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo.errors import PyMongoError

from virtfleet_common.errors import StoreUnavailable
from virtfleet_common.records import Instance
from virtfleet_common.states import PowerState, VmState
from virtfleet_common.store.guard import guarded
from virtfleet_common.store.stream import LONGEST_WAIT_MS, told

_COMPARED = ("host", "vm_state", "task_state", "power_state", "power_seen")
_TOLD = ("host", "vm_state", "power_state")
_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class Recorded:
    """As much of an instance as a report is compared with. `seen`: boot and number of the report that the power state
    is from (see `Sighting`). Small, for there is one of each guest of the fleet."""

    id: str
    host: str
    vm_state: VmState
    task_state: str | None
    power_state: PowerState
    seen: tuple[str, int] | None

    @classmethod
    def of(cls, instance: Instance) -> "Recorded":
        """This much of an instance."""
        seen = instance.power_seen
        return cls(
            instance.id, instance.host or "", instance.vm_state, instance.task_state, instance.power_state,
            (seen.boot, seen.sequence) if seen else None,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class InstanceNews:
    """What changed, by id. None: the instance is deleted, or on no host. `is_whole`: there are no others."""

    changed: Mapping[str, Recorded | None]
    is_whole: bool = False


class InstanceFeed:
    """See the module's text."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._database = database
        self._rows = database["instances"]

    async def create_indexes(self) -> None:
        """None of its own."""

    @guarded
    async def read(self, ids: Sequence[str] | None = None) -> dict[str, Recorded]:
        """These instances (None: all) as they are now, by id; those that are deleted or on no host are left out."""
        placed = {"host": {"$type": "string"}, "vm_state": {"$ne": VmState.DELETED}}
        wanted = placed if ids is None else {"_id": {"$in": list(ids)}, **placed}
        rows = self._rows.find(wanted, dict.fromkeys(_COMPARED, 1))
        found: dict[str, Recorded] = {}
        while batch := await rows.to_list(_AT_ONCE):
            found |= {row["_id"]: _recorded(row) for row in batch}
        return found

    async def follow(self) -> AsyncIterator[InstanceNews]:
        """All instances, then what changes, for as long as the stream lasts. Raises StoreUnavailable.

        The stream begins before the instances are read: what changes meanwhile is told again, and so is not missed.
        """
        try:
            began = (await self._database.command("ping"))["operationTime"]
            yield InstanceNews(await self.read(), is_whole=True)
            stream: Any = self._rows.aggregate(_pipeline(began), maxAwaitTimeMS=LONGEST_WAIT_MS)
            async with stream:
                while stream.alive:
                    ids = {change["documentKey"]["_id"] for change in await told(stream)}
                    if ids:
                        yield InstanceNews({**dict.fromkeys(ids), **await self.read(list(ids))})
        except PyMongoError as error:
            raise StoreUnavailable(f"the stream of instance changes broke: {error}") from error


def _recorded(row: Mapping[str, Any]) -> Recorded:
    """The compared part of a document. Boots and hosts are few, and named once."""
    seen = row.get("power_seen")
    return Recorded(
        row["_id"],
        intern(row["host"]),
        VmState(row["vm_state"]),
        row["task_state"],
        PowerState(row["power_state"]),
        (intern(seen["boot"]), seen["sequence"]) if seen else None,
    )


def _pipeline(began: Any) -> list[dict[str, Any]]:
    updated = "updateDescription.updatedFields"
    is_compared = [{f"{updated}.{name}": {"$exists": True}} for name in _TOLD]
    is_at_rest = {f"{updated}.task_state": {"$type": "null"}}
    matters = {"$or": [{"operationType": {"$ne": "update"}}, is_at_rest, *is_compared]}
    return [{"$changeStream": {"startAtOperationTime": began}}, {"$match": matters}, {"$project": {"documentKey": 1}}]
