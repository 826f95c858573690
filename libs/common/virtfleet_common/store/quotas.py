"""What projects may use and use: one document of counters per project, one document per instance that counts.

The counters cannot be one write with the holder they count, and the list of holders is too long to stand beside them
(a project may have tens of thousands of instances). So a change of a holder takes three writes, each to one document:

1. **count**: in the project, if there is room and no change of this holder is under way: `used` grows by the
   difference, and the whole change is noted under `pending`;
2. **write**: the holder, if it still has the version that the change was made from;
3. **close**: in the project, if it is still this change that is pending: it is taken out, and where the holder had
   another version after all (the change was made from an old reading), `used` gets the difference back.

Good path: these three. Bad path: whoever makes it dies in between; then the next one who wants to change the holder, or
the audit, finds the change under `pending` and carries on with 2 and 3. Why it is safe: nobody changes a holder while a
change of it is pending, versions only grow, and 2 and 3 are conditional on version and change; so any number may carry
the same change on, at any time, however late, and it is counted once and written once. At every moment `used` is the
sum over the holders and over the pending changes that are not written yet.

There is no multi-document transaction here because one that was left open by a killed process would block its project's
quota until the database gives it up, a minute later. A project's document stays small: it holds no more than what is
under way. A holder that is gone is remembered for as long as its instance, so that late writers find it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any
from uuid import uuid4

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, IndexModel, ReplaceOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from virtfleet_common import quota
from virtfleet_common.errors import StoreUnavailable
from virtfleet_common.failpoints import reach
from virtfleet_common.quota import KINDS, UNLIMITED, Amounts, Change
from virtfleet_common.records import ProjectQuota, QuotaHolder, QuotaShift
from virtfleet_common.store.guard import guarded
from virtfleet_common.store.indexes import forget_after

_TRIES = 50
_DUPLICATE = 11000
_AT_ONCE = 500
"""Holders read in one piece, so that an audit does not keep the loop from other work for long."""


class _Outcome(Enum):
    """How an attempt to change holders ended."""

    DONE = "done"
    FULL = "full"
    CROSSED = "crossed"
    """Somebody else changed one of them meanwhile: look again."""


class Quotas:
    """See the module's text. `defaults` are the limits of a project that has none of its own, -1: unlimited."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]], *, deleted_retention: float) -> None:
        self._database = database
        self._projects = database["quotas"]
        self._holders = database["quota_holders"]
        self._retention = deleted_retention

    async def create_indexes(self) -> None:
        """Declare the indexes, among them the one that forgets what is long gone."""
        await self._holders.create_indexes([IndexModel([("project_id", ASCENDING)])])
        await forget_after(self._database, self._holders.name, "gone_at", self._retention)

    @guarded
    async def get(self, project_id: str) -> ProjectQuota:
        """A project's quota; one that never used anything reads as empty."""
        row = await self._projects.find_one({"_id": project_id}, {"pending": 0})
        return ProjectQuota.model_validate(row or {"_id": project_id})

    @guarded
    async def project_ids(self) -> list[str]:
        """Every project that has a quota."""
        return [row["_id"] async for row in self._projects.find({}, {"_id": 1}).sort("_id", ASCENDING)]

    @guarded
    async def set_limits(self, project_id: str, limits: Amounts) -> None:
        """Give a project limits of its own, of some kinds or all."""
        fields = {f"limits.{kind}": limit for kind, limit in limits.items()}
        await self._projects.update_one({"_id": project_id}, {"$set": fields}, upsert=True)

    @guarded
    async def clear_limits(self, project_id: str) -> None:
        """Take a project's own limits away: the defaults are its limits again."""
        await self._projects.update_one({"_id": project_id}, {"$set": {"limits": {}}})

    @guarded
    async def holder(self, holder_id: str) -> QuotaHolder | None:
        """What one instance counts, also once it is gone; None if it never counted, or is forgotten."""
        row = await self._holders.find_one({"_id": holder_id})
        return QuotaHolder.model_validate(row) if row else None

    @guarded
    async def holders(self, project_id: str) -> list[QuotaHolder]:
        """Everything that counts in a project."""
        rows = self._holders.find({"project_id": project_id, "gone_at": None}, batch_size=_AT_ONCE)
        return [QuotaHolder.model_validate(row) async for row in rows]

    @guarded
    async def reserve(
        self, project_id: str, holder_ids: Sequence[str], each: Amounts, *, defaults: Amounts, least: int = 1
    ) -> int:
        """Count the first of `holder_ids`, as many as there is room for, but `least` or none. Returns how many.

        Asked again for the same holders it answers the same: what counts already is not counted again.
        """
        wanted = len(holder_ids)
        for _ in range(_TRIES):
            held = await self._read(project_id, holder_ids)
            if known := [id_ for id_ in holder_ids if held[id_].amounts]:
                return len(known)
            changes = [(held[id_], quota.reserve(each)(held[id_])) for id_ in holder_ids[:wanted]]
            outcome = await self._shift(project_id, changes, defaults)
            if outcome is _Outcome.DONE:
                return wanted
            if outcome is _Outcome.FULL:
                wanted = quota.fitting(await self.get(project_id), defaults, each, wanted)
                if wanted < max(1, least):
                    return 0
        raise _crossed(project_id)

    async def hold(
        self, project_id: str, holder_id: str, action_id: str, more: Amounts, *, rank: int, defaults: Amounts
    ) -> bool:
        """Count `more` for a move that an action asks for; False if there is no room. Once per action."""
        return await self._change(project_id, holder_id, quota.hold(action_id, more, rank), defaults)

    async def drop(self, project_id: str, holder_id: str, action_id: str) -> None:
        """Give back what was held for a move that was not accepted after all."""
        await self._change(project_id, holder_id, quota.drop(action_id))

    async def settle(self, project_id: str, holder_id: str, amounts: Amounts, *, rank: int) -> None:
        """The holder counts `amounts` and nothing for moves, unless a newer `rank` was settled, or it is gone."""
        await self._change(project_id, holder_id, quota.settle(amounts, rank))

    async def release(self, project_id: str, holder_id: str) -> None:
        """The holder counts nothing any more. Gives back once, however often it is asked."""
        await self._change(project_id, holder_id, quota.release(datetime.now(UTC)))

    @guarded
    async def recount(self, project_id: str) -> dict[str, int]:
        """Carry on what was left pending, then correct the counters; returns by how much, per kind that was wrong.

        Counters, holders and pending changes are read as of one moment, so others may go on changing them.
        """
        row = await self._projects.find_one({"_id": project_id}, {"pending": 1})
        if row is None:
            return {}
        for holder_id, shift in ProjectQuota.model_validate(row).pending.items():
            await self._carry_on(project_id, {holder_id: shift})
        wrong = await self._discrepancy(project_id)
        if wrong:
            await self._projects.update_one({"_id": project_id}, {"$inc": _prefixed("used", wrong)})
        return wrong

    @guarded
    async def _change(self, project_id: str, holder_id: str, change: Change, defaults: Amounts | None = None) -> bool:
        for _ in range(_TRIES):
            held = (await self._read(project_id, [holder_id]))[holder_id]
            changed = change(held)
            if changed == held:
                return True
            outcome = await self._shift(project_id, [(held, changed)], defaults)
            if outcome is not _Outcome.CROSSED:
                return outcome is _Outcome.DONE
        raise _crossed(project_id)

    async def _read(self, project_id: str, holder_ids: Iterable[str]) -> dict[str, QuotaHolder]:
        found = {id_: QuotaHolder(id=id_, project_id=project_id) for id_ in holder_ids}
        async for row in self._holders.find({"_id": {"$in": list(found)}}):
            found[row["_id"]] = QuotaHolder.model_validate(row)
        return found

    async def _shift(
        self, project_id: str, changes: Sequence[tuple[QuotaHolder, QuotaHolder]], defaults: Amounts | None
    ) -> _Outcome:
        """The three writes, for some holders at once; `defaults` None: without asking for room."""
        op = uuid4().hex
        shifts = {before.id: _shift_of(before, after, op) for before, after in changes}
        asked = quota.summed(shift.delta for shift in shifts.values())
        free = {f"pending.{id_}": {"$exists": False} for id_ in shifts}
        counted: dict[str, Any] = {"$set": {f"pending.{id_}": shift.document() for id_, shift in shifts.items()}}
        if any(asked.values()):
            counted["$inc"] = _prefixed("used", asked)
        result = await self._projects.update_one({"_id": project_id, **free, **_room(asked, defaults)}, counted)
        if result.matched_count == 0:
            return await self._why_not(project_id, list(shifts), asked, defaults)
        reach("quota.counted")
        return await self._carry_on(project_id, shifts)

    async def _why_not(
        self, project_id: str, holder_ids: Sequence[str], asked: Amounts, defaults: Amounts | None
    ) -> _Outcome:
        fields = {"used": 1, "limits": 1, **{f"pending.{id_}": 1 for id_ in holder_ids}}
        row = await self._projects.find_one({"_id": project_id}, fields)
        if row is None:
            await self._found(project_id)
            return _Outcome.CROSSED
        project = ProjectQuota.model_validate(row)
        for holder_id, shift in project.pending.items():
            await self._carry_on(project_id, {holder_id: shift})
        if defaults is None or project.pending or quota.lacking(project, defaults, asked) is None:
            return _Outcome.CROSSED
        return _Outcome.FULL

    async def _found(self, project_id: str) -> None:
        new = ProjectQuota(id=project_id, used=dict.fromkeys(KINDS, 0)).document()
        try:
            await self._projects.insert_one(new)
        except DuplicateKeyError:
            return  # somebody else did

    async def _carry_on(self, project_id: str, shifts: Mapping[str, QuotaShift]) -> _Outcome:
        """Writes 2 and 3. Whoever finds these changes pending may do this, and it is done once."""
        written = await self._write(shifts)
        reach("quota.written")
        void = shifts.keys() - written
        await self._close(project_id, shifts, void)
        return _Outcome.CROSSED if void else _Outcome.DONE

    async def _write(self, shifts: Mapping[str, QuotaShift]) -> set[str]:
        """Write the holders that are as they were; returns those that these changes made what they are."""
        writes = [
            ReplaceOne({"_id": id_, "version": shift.was}, shift.next.document(), upsert=shift.was == 0)
            for id_, shift in shifts.items()
        ]
        try:
            result = await self._holders.bulk_write(writes, ordered=False)
            if result.matched_count + result.upserted_count == len(writes):
                return set(shifts)
        except BulkWriteError as error:  # an insert of one that is there by now
            if any(one["code"] != _DUPLICATE for one in error.details["writeErrors"]):
                raise
        rows = self._holders.find({"_id": {"$in": list(shifts)}}, {"op": 1})
        return {row["_id"] async for row in rows if row["op"] == shifts[row["_id"]].op}

    async def _close(self, project_id: str, shifts: Mapping[str, QuotaShift], void: Iterable[str]) -> None:
        pending = {f"pending.{id_}.op": shift.op for id_, shift in shifts.items()}
        closed: dict[str, Any] = {"$unset": {f"pending.{id_}": "" for id_ in shifts}}
        back = quota.summed(shifts[id_].delta for id_ in void)
        if any(back.values()):
            closed["$inc"] = _prefixed("used", {kind: -amount for kind, amount in back.items()})
        result = await self._projects.update_one({"_id": project_id, **pending}, closed)
        if result.matched_count == 0 and len(shifts) > 1:  # others closed some of them: one by one then
            for id_, shift in shifts.items():
                await self._close(project_id, {id_: shift}, {id_} & set(void))

    async def _discrepancy(self, project_id: str) -> dict[str, int]:
        """What the counters lack, by the holders and the pending changes of the same moment."""
        async with await self._database.client.start_session(snapshot=True) as session:
            row = await self._projects.find_one({"_id": project_id}, session=session)
            mine = {"project_id": project_id, "gone_at": None}
            rows = self._holders.find(mine, batch_size=_AT_ONCE, session=session)
            sums = quota.summed([quota.total(QuotaHolder.model_validate(one)) async for one in rows])
            project = ProjectQuota.model_validate(row)
            ids = list(project.pending)
            ops = {one["_id"]: one["op"] async for one in self._holders.find({"_id": {"$in": ids}}, session=session)}
        unwritten = (shift.delta for id_, shift in project.pending.items() if ops.get(id_) != shift.op)
        right = quota.summed([sums, *unwritten])
        return {kind: right[kind] - have for kind in KINDS if (have := project.used.get(kind, 0)) != right[kind]}


def _shift_of(before: QuotaHolder, after: QuotaHolder, op: str) -> QuotaShift:
    now = datetime.now(UTC)
    stamped = after.model_copy(update={"version": before.version + 1, "op": op, "changed_at": now})
    delta = quota.difference(before, after)
    return QuotaShift(op=op, was=before.version, next=stamped, delta=delta)


def _room(asked: Amounts, defaults: Amounts | None) -> dict[str, Any]:
    """The condition that a project has room for what is asked, by its limits at the moment of the write."""
    if defaults is None:
        return {}
    fits = [_fits(kind, amount, defaults.get(kind, UNLIMITED)) for kind, amount in asked.items() if amount > 0]
    return {"$expr": {"$and": fits}} if fits else {}


def _fits(kind: str, amount: int, default: int) -> dict[str, Any]:
    limit = {"$ifNull": [f"$limits.{kind}", default]}
    after = {"$add": [{"$ifNull": [f"$used.{kind}", 0]}, amount]}
    return {"$or": [{"$lt": [limit, 0]}, {"$lte": [after, limit]}]}


def _prefixed(path: str, amounts: Amounts) -> dict[str, int]:
    return {f"{path}.{kind}": amount for kind, amount in amounts.items() if amount}


def _crossed(project_id: str) -> StoreUnavailable:
    return StoreUnavailable(f"the quota of project {project_id} changes too fast")
