"""The hosts as placement looks at them: all of them once, then each change of one as it is committed.

A change stream tells the changes; heartbeats, which change nothing that placement looks at, are left out by the
database. A stream that breaks is not resumed: whoever follows begins again with all hosts, which mends what was missed.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo.errors import PyMongoError

from virtfleet_common.errors import StoreUnavailable
from virtfleet_common.records import Host
from virtfleet_common.store.guard import guarded
from virtfleet_common.store.stream import LONGEST_WAIT_MS, told

VIEWED = (
    "free", "limits", "total", "state", "is_enabled", "is_responsive", "availability_zone", "arch", "hypervisor_type",
    "hypervisor_version", "hypervisor_hostname", "host_ip", "placed", "failures",
)  # fmt: skip
"""The fields of a host that placement looks at."""
_HEARTBEAT = ["last_seen", "sequence", "guests", "boot_id"]
_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class HostChange:
    """What changed of a host: dotted paths and their values (`free.vcpus`). None: the host is gone."""

    host: str
    fields: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class HostNews:
    """Changes in the order of their commits. `is_whole`: these are all the hosts there are, with all their fields.
    `aggregates`: an aggregate was changed, made or deleted too."""

    changes: Sequence[HostChange]
    is_whole: bool = False
    aggregates: bool = False


class HostFeed:
    """See the module's text."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]]) -> None:
        self._database = database
        self._rows = database["hosts"]

    async def create_indexes(self) -> None:
        """None of its own."""

    @guarded
    async def read(self, hosts: Sequence[str] | None = None) -> list[HostChange]:
        """These hosts (None: all) as they are now; those that are not there are left out."""
        wanted = {} if hosts is None else {"_id": {"$in": list(hosts)}}
        rows = self._rows.find(wanted, dict.fromkeys(VIEWED, 1))
        found: list[HostChange] = []
        while batch := await rows.to_list(_AT_ONCE):
            found += [as_change(row) for row in batch]
        return found

    async def follow(self) -> AsyncIterator[HostNews]:
        """All hosts, then their changes, for as long as the stream lasts. An empty news says that nothing happened for
        a second. Raises StoreUnavailable.

        The stream begins before the hosts are read: what changes meanwhile is told again, and so is not missed.
        """
        try:
            began = (await self._database.command("ping"))["operationTime"]
            yield HostNews(await self.read(), is_whole=True, aggregates=True)
            stream: Any = self._database.aggregate(_pipeline(began), maxAwaitTimeMS=LONGEST_WAIT_MS)
            async with stream:
                while stream.alive:
                    yield await self._news(await told(stream))
        except PyMongoError as error:
            raise StoreUnavailable(f"the stream of host changes broke: {error}") from error

    async def _news(self, changed: Sequence[Mapping[str, Any]]) -> HostNews:
        of_hosts = [one for one in changed if one["ns"]["coll"] == "hosts"]
        changes = [_as_read(one) for one in of_hosts]
        unclear = {one["documentKey"]["_id"] for one in of_hosts if _is_unclear(one)}
        if unclear:
            changes += await self.read(list(unclear))
        return HostNews(changes, aggregates=len(of_hosts) < len(changed))


def as_change(row: Mapping[str, Any]) -> HostChange:
    """A whole document as a change of everything; fields it lacks are as in a new host."""
    document = {**_NEW, **{name: value for name, value in row.items() if name in VIEWED}}
    return HostChange(row["_id"], flattened(document))


def flattened(document: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields as dotted paths, one level deep."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            flat[name] = value
    return flat


def _pipeline(began: Any) -> list[dict[str, Any]]:
    names = {"$map": {"input": {"$objectToArray": "$updateDescription.updatedFields"}, "in": "$$this.k"}}
    is_more_than_a_heartbeat = {"$gt": [{"$size": {"$setDifference": [names, _HEARTBEAT]}}, 0]}
    watched = {"ns.coll": {"$in": ["hosts", "aggregates"]}}
    either = {"$or": [{"operationType": {"$ne": "update"}}, {"$expr": is_more_than_a_heartbeat}]}
    kept = {"operationType": 1, "ns": 1, "documentKey": 1, "updateDescription.updatedFields": 1}
    return [{"$changeStream": {"startAtOperationTime": began}}, {"$match": {**watched, **either}}, {"$project": kept}]


def _as_read(change: Mapping[str, Any]) -> HostChange:
    host = change["documentKey"]["_id"]
    if change["operationType"] == "delete":
        return HostChange(host, None)
    updated = change.get("updateDescription", {}).get("updatedFields", {})
    return HostChange(host, flattened({name: value for name, value in updated.items() if _is_viewed(name)}))


def _is_viewed(path: str) -> bool:
    return path.partition(".")[0] in VIEWED


def _is_unclear(change: Mapping[str, Any]) -> bool:
    """New documents, and changes inside a list, are read whole."""
    updated = change.get("updateDescription", {}).get("updatedFields", {})
    is_new = change["operationType"] in ("insert", "replace")
    return is_new or any(name.startswith("failures") for name in updated)


_NEW = {name: value for name, value in Host(id="", uuid="").document().items() if name in VIEWED}
