"""The hosts collection: liveness, capacity and the claims on it.

A claim is one conditional update of one document: room for it, host up and enabled, not claimed under this name yet.
So any number of schedulers may claim at once, and none can overcommit a host; the same claim twice is one claim.
A release takes the named claim away and gives back what it held, in one update, so it happens exactly once.
The rule of an anti-affinity group is part of the same condition; affinity is held by `pins.py`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne

from virtfleet_common.records import Allocation, Host, Resources
from virtfleet_common.states import HostState
from virtfleet_common.store.gather import ClaimGatherer
from virtfleet_common.store.guard import guarded
from virtfleet_common.store.pins import Pins

INDEXES = [
    IndexModel([("allocations.claim", ASCENDING)]),
    IndexModel([("allocations.instance_id", ASCENDING)]),
    IndexModel([("allocations.group", ASCENDING)], partialFilterExpression={"allocations.group": {"$type": "string"}}),
    IndexModel([("uuid", ASCENDING)], unique=True),
]
FAILURES_KEPT = 16
KINDS = ("vcpus", "ram_mb", "disk_gb")


class Hosts:
    """See the module's text."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]], pins: Pins) -> None:
        self._rows = database["hosts"]
        self._claims = ClaimGatherer(self._rows)
        self._pins = pins

    async def create_indexes(self) -> None:
        """Declare the indexes."""
        await self._rows.create_indexes(INDEXES)

    @guarded
    async def register(self, host_id: str, *, uuid: str, limits: Resources, facts: Mapping[str, Any]) -> Host:
        """An agent came up: write its facts; what a new host's facts do not say is as in `Host`.

        Capacity that changed moves `free`; allocations stay. A new boot counts its heartbeats from the beginning. A
        host that was lost is up again, unless it is forced down.
        """
        new = limits.model_dump()
        free = {kind: {"$subtract": [new[kind], {"$sum": f"$allocations.{kind}"}]} for kind in KINDS}
        boot_id = {"$literal": facts.get("boot_id")}
        counted = {"$cond": [{"$eq": ["$boot_id", boot_id]}, {"$ifNull": ["$sequence", 0]}, 0]}
        first = {name: {"$ifNull": [f"${name}", {"$literal": value}]} for name, value in _as_new(host_id, uuid).items()}
        said = {name: {"$literal": value} for name, value in facts.items()}
        pipeline: list[dict[str, Any]] = [
            {"$set": {**first, "created_at": {"$ifNull": ["$created_at", "$$NOW"]}, "sequence": counted}},
            {"$set": {"uuid": uuid, "limits": new, "free": free, "last_seen": "$$NOW", **said}},
            {"$set": {"placed": {"$size": "$allocations"}, "fence": None, "lost_at": None}},
            {"$set": {"state": {"$cond": ["$is_forced_down", HostState.DOWN, HostState.UP]}}},
        ]
        row = await self._rows.find_one_and_update({"_id": host_id}, pipeline, upsert=True, return_document=True)
        return Host.model_validate(row)

    @guarded
    async def get(self, host_id: str) -> Host | None:
        """One host, or None."""
        row = await self._rows.find_one({"_id": host_id})
        return Host.model_validate(row) if row else None

    @guarded
    async def get_brief(self, host_id: str) -> Host | None:
        """One host without its allocations, or None."""
        row = await self._rows.find_one({"_id": host_id}, {"allocations": 0, "failures": 0})
        return Host.model_validate(row) if row else None

    @guarded
    async def get_state(self, host_id: str) -> HostState | None:
        """Whether a host is up, unknown or down; None if there is no such host."""
        row = await self._rows.find_one({"_id": host_id}, {"state": 1})
        return HostState(row["state"]) if row else None

    @guarded
    async def get_last_heard(self) -> datetime | None:
        """When a host, whichever it was, was last heard; None if none ever was."""
        row = await self._rows.find_one({}, {"last_seen": 1}, sort=[("last_seen", DESCENDING)])
        return row["last_seen"] if row else None

    @guarded
    async def find(self) -> list[Host]:
        """Every host, without its allocations (a field of its own to read: see `get`)."""
        return [
            Host.model_validate(row) async for row in self._rows.find({}, {"allocations": 0}).sort("_id", ASCENDING)
        ]

    @guarded
    async def put_seen(self, seen: Mapping[str, Mapping[str, Any]]) -> None:
        """Heartbeats: fields per host, in one bulk write, `last_seen` by the database's clock.

        Only a newer sequence of the host's current boot is taken; the agent writes its boot id when it registers.
        """
        writes = [
            UpdateOne(
                {"_id": host, "boot_id": fields["boot_id"], "sequence": {"$lt": fields["sequence"]}},
                {"$set": dict(fields), "$currentDate": {"last_seen": True}},
            )
            for host, fields in seen.items()
        ]
        if writes:
            await self._rows.bulk_write(writes, ordered=False)

    @guarded
    async def set_fields(
        self, host_id: str, fields: Mapping[str, Any], *, was: Mapping[str, Any] | None = None
    ) -> bool:
        """Set fields of a host if it is as it `was`; False if it is not, or is not there."""
        result = await self._rows.update_one({"_id": host_id, **(was or {})}, {"$set": dict(fields)})
        return result.matched_count == 1

    @guarded
    async def remove(self, host_id: str, *, was: Mapping[str, Any]) -> bool:
        """Forget a host if it is as it `was`; False if it is not, or is not there."""
        return (await self._rows.delete_one({"_id": host_id, **was})).deleted_count == 1

    @guarded
    async def find_page(self, after: str = "", limit: int = 500) -> list[Host]:
        """The next hosts by name, with their allocations."""
        rows = self._rows.find({"_id": {"$gt": after}}).sort("_id", ASCENDING).limit(limit)
        return [Host.model_validate(row) async for row in rows]

    @guarded
    async def find_members(self, group_id: str) -> dict[str, list[str]]:
        """Where a group's members hold a place: the ids of the instances, by host."""
        rows = self._rows.find({"allocations.group": group_id}, {"allocations.group": 1, "allocations.instance_id": 1})
        return {row["_id"]: _members(row["allocations"], group_id) async for row in rows}

    @guarded
    async def find_holding(self, instance_ids: Sequence[str]) -> list[str]:
        """The hosts on which any of these instances holds a place."""
        rows = self._rows.find({"allocations.instance_id": {"$in": list(instance_ids)}}, {"_id": 1})
        return [row["_id"] async for row in rows]

    @guarded
    async def note_failure(self, host_id: str, attempt: str) -> None:
        """A guest could not be built here. The same attempt counts once; the latest are kept."""
        failure = {"id": attempt, "at": datetime.now(UTC)}
        kept = {"$push": {"failures": {"$each": [failure], "$slice": -FAILURES_KEPT}}}
        await self._rows.update_one({"_id": host_id, "failures.id": {"$ne": attempt}}, kept)

    @guarded
    async def claim(self, host_id: str, wanted: Allocation, *, most_in_group: int | None = None) -> bool:
        """Claim a place: True if the host has it for this claim (now or already), False if the host refused.

        `most_in_group`: no more than so many members of the allocation's group on the host, this one among them.
        """
        room = {f"free.{kind}": {"$gte": amount} for kind, amount in _need(wanted).items() if amount > 0}
        fit = {"_id": host_id, "state": HostState.UP, "is_enabled": True, "is_responsive": True, **room}
        is_new = {"allocations.claim": {"$ne": wanted.claim}}
        apart = {"$expr": _has_fewer(wanted, most_in_group)} if most_in_group else {}
        return await self._claims.claim(host_id, wanted.claim, {**fit, **is_new, **apart}, as_taken(wanted))

    @guarded
    async def find_claim(self, claim: str) -> str | None:
        """The host that a claim is on, or None."""
        row = await self._rows.find_one({"allocations.claim": claim}, {"_id": 1})
        return row["_id"] if row else None

    @guarded
    async def release(self, instance_id: str, claim: str | None = None, host_id: str | None = None) -> int:
        """Give back one claim of an instance, or all of them, on one host or wherever they are, and the pins of its
        group with it. Returns how many were given back."""
        mine = {"allocations.claim": claim} if claim else {"allocations.instance_id": instance_id}
        there = {"_id": host_id} if host_id else {}
        released = 0
        async for row in self._rows.find({**there, **mine}, {"allocations": 1}):
            allocations = [Allocation.model_validate(one) for one in row["allocations"]]
            for held in held_by(allocations, instance_id, claim):
                is_held = {"_id": row["_id"], "allocations.claim": held.claim}
                result = await self._rows.update_one(is_held, as_given_back(held))
                released += result.modified_count
                if held.group:
                    await self._pins.unpin(held.group, held.claim, row["_id"])
        return released


def as_lost(at: datetime) -> dict[str, Any]:
    """The fields of a host that is declared lost. Its registration is void: reports of it count for nothing, its
    guests among them, and it is lost until its agent has put it in order and registers anew."""
    stored_at = at.replace(microsecond=at.microsecond // 1000 * 1000)  # as it will be read
    return {"state": HostState.DOWN, "boot_id": None, "fence": None, "lost_at": stored_at, "guests": 0}


def _has_fewer(wanted: Allocation, most: int) -> dict[str, Any]:
    """Fewer than `most` other members of the group hold a place: a condition within the host's document."""
    members = {"$filter": {"input": "$allocations", "cond": {"$eq": ["$$this.group", wanted.group]}}}
    ids = {"$map": {"input": members, "in": "$$this.instance_id"}}
    return {"$lt": [{"$size": {"$setDifference": [ids, [wanted.instance_id]]}}, most]}


def has_fewer(host: Host, wanted: Allocation, most: int) -> bool:
    """Whether fewer than `most` other members of the group hold a place, as the claim's condition says it."""
    members = {one.instance_id for one in host.allocations if one.group == wanted.group}
    return len(members - {wanted.instance_id}) < most


def _members(allocations: Sequence[Mapping[str, Any]], group_id: str) -> list[str]:
    return sorted({one["instance_id"] for one in allocations if one.get("group") == group_id})


def has_room(host: Host, wanted: Allocation) -> bool:
    """Whether a host may take a new claim of this size, as the claim's filter says it."""
    is_fit = host.state is HostState.UP and host.is_enabled and host.is_responsive
    return is_fit and all(getattr(host.free, kind) >= amount for kind, amount in _need(wanted).items() if amount > 0)


def as_taken(wanted: Allocation) -> dict[str, Any]:
    """A claim as a MongoDB update."""
    less = {f"free.{kind}": -amount for kind, amount in _need(wanted).items()}
    return {"$inc": {**less, "placed": 1}, "$push": {"allocations": wanted.model_dump()}}


def as_given_back(held: Allocation) -> dict[str, Any]:
    """The release of a claim as a MongoDB update."""
    more = {f"free.{kind}": amount for kind, amount in _need(held).items()}
    return {"$inc": {**more, "placed": -1}, "$pull": {"allocations": {"claim": held.claim}}}


def held_by(allocations: Sequence[Allocation], instance_id: str, claim: str | None) -> list[Allocation]:
    """The allocations that a release means: one claim of an instance, or all of them."""
    return [one for one in allocations if one.instance_id == instance_id and claim in (None, one.claim)]


def _need(allocation: Allocation) -> dict[str, int]:
    return {kind: getattr(allocation, kind) for kind in KINDS}


def _as_new(host_id: str, uuid: str) -> dict[str, Any]:
    document = Host(id=host_id, uuid=uuid).document()
    return {name: value for name, value in document.items() if name not in ("_id", "boot_id", "sequence", "created_at")}
