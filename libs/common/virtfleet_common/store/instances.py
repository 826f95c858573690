"""The instances collection and its one write path.

Good path: one `find_one_and_update` checks what the writer believes and writes states, the next step and the effects
together. Bad path: the filter misses, nothing is written, and the writer learns which belief was wrong. Why it is safe:
a single document is written atomically, so the next step and its announcement are committed with the state or not at
all; and every writer names the action, step and claim it acts for, so that a writer that was overtaken cannot write.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from motor.motor_asyncio import AsyncIOMotorDatabase
from pymongo import ASCENDING, DESCENDING, IndexModel, ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from virtfleet_common.effects import Effect
from virtfleet_common.records import EVACUATION, ActionState, Holder, Instance, Step
from virtfleet_common.states import EVACUABLE, TaskState, VmState
from virtfleet_common.store.batch import Batcher
from virtfleet_common.store.expect import Expect, Mismatch
from virtfleet_common.store.guard import guarded
from virtfleet_common.store.indexes import forget_after

INDEXES = [
    IndexModel([("project_id", ASCENDING), ("created_at", DESCENDING), ("_id", DESCENDING)]),
    IndexModel([("created_at", DESCENDING), ("_id", DESCENDING)]),
    IndexModel([("host", ASCENDING)]),
    IndexModel([("hints.group", ASCENDING)], sparse=True),
    IndexModel([("outbox.at", ASCENDING)], sparse=True),
    IndexModel([("move.confirm_by", ASCENDING)], sparse=True),
    IndexModel([("move.source", ASCENDING)], sparse=True),
    IndexModel([("move.type", ASCENDING)], sparse=True),
    IndexModel(
        [("action.step.executor", ASCENDING), ("action.progressed_at", ASCENDING)],
        partialFilterExpression={"action.id": {"$type": "string"}},
    ),
]
_WITHOUT_OUTBOX = {"outbox": 0}
_IN_PROGRESS = {"action.id": {"$type": "string"}}
_COMPUTE = {"$gte": "compute.", "$lt": "compute/"}
"""Every `compute.<host>`: a range that the index knows."""
_HOLDING = (
    "vm_state", "host", "claim", "flavor", "old_flavor", "new_flavor", "move", "action.id", "action.step",
    "outbox.kind", "outbox.claim", "outbox.cleanup",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InstanceQuery:
    """What a list asks for; None: any. Newest first; `after` is the last instance of the page before."""

    project_id: str | None = None
    vm_states: frozenset[VmState] | None = None
    task_states: frozenset[TaskState | None] | None = None
    host: str | None = None
    name_pattern: str | None = None
    flavor_id: str | None = None
    image_id: str | None = None
    reservation_id: str | None = None
    group_id: str | None = None
    changed_since: datetime | None = None
    is_deleted: bool | None = False
    after: Instance | None = None
    limit: int = 1000

    def as_filter(self) -> dict[str, Any]:
        """This query as a MongoDB filter."""
        plain = {
            "project_id": self.project_id, "host": self.host, "flavor._id": self.flavor_id,
            "image._id": self.image_id, "reservation_id": self.reservation_id, "hints.group": self.group_id,
            "name": {"$regex": self.name_pattern} if self.name_pattern else None,
            "updated_at": {"$gte": self.changed_since} if self.changed_since else None,
        }  # fmt: skip
        wanted: dict[str, Any] = {path: value for path, value in plain.items() if value is not None}
        clauses: list[dict[str, Any]] = []
        if self.vm_states is not None:
            clauses.append({"vm_state": {"$in": list(self.vm_states)}})
        if self.task_states is not None:
            clauses.append({"task_state": {"$in": list(self.task_states)}})
        if self.is_deleted is not None:
            clauses.append({"vm_state": VmState.DELETED if self.is_deleted else {"$ne": VmState.DELETED}})
        if self.after is not None:
            at, id_ = self.after.created_at, self.after.id
            clauses.append({"$or": [{"created_at": {"$lt": at}}, {"created_at": at, "_id": {"$lt": id_}}]})
        return wanted | ({"$and": clauses} if clauses else {})

    def matches(self, instance: Instance) -> bool:
        """Whether an instance belongs on the list, as the filter says it."""
        image_id = instance.image.id if instance.image else None
        is_deleted = instance.vm_state is VmState.DELETED
        place = (instance.created_at, instance.id)
        return (
            self.project_id in (None, instance.project_id)
            and self.host in (None, instance.host)
            and self.flavor_id in (None, instance.flavor.id)
            and self.image_id in (None, image_id)
            and self.reservation_id in (None, instance.reservation_id)
            and self.group_id in (None, instance.hints.get("group"))
            and (not self.name_pattern or re.search(self.name_pattern, instance.name) is not None)
            and (self.changed_since is None or instance.updated_at >= self.changed_since)
            and (self.vm_states is None or instance.vm_state in self.vm_states)
            and (self.task_states is None or instance.task_state in self.task_states)
            and self.is_deleted in (None, is_deleted)
            and (self.after is None or place < (self.after.created_at, self.after.id))
        )


@dataclass(frozen=True, slots=True)
class Delivered:
    """What has left an outbox: effects by id, and the step that was sent (None: no step)."""

    instance_id: str
    effect_ids: Sequence[str]
    action_id: str | None = None
    seq: int | None = None

    def as_updates(self) -> list[tuple[Expect, dict[str, Any]]]:
        """The writes that note it, each with its condition."""
        gone = {"$pull": {"outbox": {"id": {"$in": list(self.effect_ids)}}}} if self.effect_ids else {}
        updates: list[tuple[Expect, dict[str, Any]]] = []
        if self.seq is not None:
            sent = {"$currentDate": {"action.sent_at": True}}
            updates.append((Expect(action_id=self.action_id, seq=self.seq), {**gone, **sent}))
        if gone:  # the action may have moved on meanwhile; where it did not, this finds nothing left to do
            updates.append((Expect(), gone))
        return updates


class Instances:
    """See the module's text. Raises StoreUnavailable where the database does not confirm in time."""

    def __init__(self, database: AsyncIOMotorDatabase[dict[str, Any]], *, deleted_retention: float) -> None:
        self._database = database
        self._rows = database["instances"]
        self._sent = Batcher(self._rows)
        self._retention = deleted_retention

    async def create_indexes(self) -> None:
        """Declare the indexes, among them the one that forgets deleted instances after their retention."""
        await self._rows.create_indexes(INDEXES)
        await forget_after(self._database, self._rows.name, "deleted_at", self._retention)

    @guarded
    async def insert(self, instance: Instance, effects: Sequence[Effect] = ()) -> Instance:
        """Store a new instance with its first step. Raises Mismatch if one with this id is there."""
        new = instance.model_copy(update={"outbox": stamped(effects, instance.created_at)})
        try:
            await self._rows.insert_one(new.document())
        except DuplicateKeyError:
            raise Mismatch("id", instance.id, await self.get(instance.id)) from None
        return new

    @guarded
    async def get(self, instance_id: str) -> Instance | None:
        """The instance, deleted ones included; None if there is none of that id."""
        row = await self._rows.find_one({"_id": instance_id})
        return Instance.model_validate(row) if row else None

    @guarded
    async def find(self, query: InstanceQuery) -> list[Instance]:
        """One page, newest first."""
        order = [("created_at", DESCENDING), ("_id", DESCENDING)]
        rows = self._rows.find(query.as_filter()).sort(order).limit(query.limit)
        return [Instance.model_validate(row) async for row in rows]

    @guarded
    async def project_ids(self) -> list[str]:
        """Every project that has an instance."""
        found: list[str] = await self._rows.distinct("project_id", {"vm_state": {"$ne": VmState.DELETED}})
        return found

    @guarded
    async def find_on_host(self, host: str) -> list[Instance]:
        """Every instance that the record places on a host."""
        rows = self._rows.find({"host": host, "vm_state": {"$ne": VmState.DELETED}})
        return [Instance.model_validate(row) async for row in rows]

    @guarded
    async def find_ids(self, ids: Collection[str]) -> list[Instance]:
        """These instances, deleted ones included; those that are not there are left out."""
        return [Instance.model_validate(row) async for row in self._rows.find({"_id": {"$in": list(ids)}})]

    @guarded
    async def find_evacuating(self, source: str) -> list[Instance]:
        """Every instance in an open evacuation from a host."""
        rows = self._rows.find({"move.source": source, "move.type": EVACUATION})
        return [Instance.model_validate(row) async for row in rows]

    @guarded
    async def count_evacuating(self) -> int:
        """How many evacuations are under way."""
        return int(await self._rows.count_documents({"move.type": EVACUATION}))

    @guarded
    async def find_evacuable(
        self, hosts: Collection[str], *, is_wanted: bool, besides: Collection[str] = (), limit: int = 1000
    ) -> list[Instance]:
        """Idle instances on these hosts that may be evacuated and are to be: by their metadata `ha`, or where that says
        nothing, if it `is_wanted`; `besides` are left out."""
        wanted = {"$ne": "false"} if is_wanted else "true"
        idle = {"host": {"$in": list(hosts)}, "task_state": None, "move": None, "_id": {"$nin": list(besides)}}
        rows = self._rows.find({**idle, "metadata.ha": wanted, "vm_state": {"$in": list(EVACUABLE)}}).limit(limit)
        return [Instance.model_validate(row) async for row in rows]

    @guarded
    async def find_at(self, executors: Collection[str]) -> list[Instance]:
        """Every instance whose current step is one of these executors'."""
        rows = self._rows.find({**_IN_PROGRESS, "action.step.executor": {"$in": list(executors)}})
        return [Instance.model_validate(row) async for row in rows]

    @guarded
    async def touch_on_host(self, host: str) -> int:
        """Count up the `rev` of what is idle on a host: whoever read it before now loses the compare-and-set."""
        idle = {"host": host, "task_state": None, "vm_state": {"$ne": VmState.DELETED}}
        return int((await self._rows.update_many(idle, {"$inc": {"rev": 1}})).modified_count)

    @guarded
    async def transition(
        self,
        instance_id: str,
        *,
        expect: Expect,
        set: Mapping[str, Any] | None = None,
        begin: ActionState | None = None,
        step: Step | None = None,
        action: Mapping[str, Any] | None = None,
        end: bool = False,
        effects: Sequence[Effect] = (),
    ) -> Instance:
        """Write the instance if it is as expected, and return it as written (without its outbox: it may be long).

        `set` are fields of the instance. At most one of these touches the action: `begin` a new one (it preempts what
        `expect` lets it), hand over to its next `step`, `end` it; `action` sets fields of the one that goes on.
        Raises Mismatch, naming the first field that was not as expected.
        """
        update = as_update(set or {}, begin, step, action or {}, end, effects)
        row = await self._rows.find_one_and_update(
            {"_id": instance_id, **expect.as_filter()}, update, _WITHOUT_OUTBOX, return_document=ReturnDocument.AFTER
        )
        if row is not None:
            return Instance.model_validate(row)
        stored = await self.get(instance_id)
        if stored is None:
            raise Mismatch("instance", None, None)
        attribute, value = expect.mismatch(stored) or ("rev", stored.rev)
        raise Mismatch(attribute, value, stored)

    async def mark_delivered(self, delivered: Delivered) -> None:
        """Take delivered effects out of the outbox, and note the step as sent. Calls are gathered into bulk writes."""
        mine = {"_id": delivered.instance_id}
        await self._sent.add(
            [UpdateOne({**mine, **expect.as_filter()}, update) for expect, update in delivered.as_updates()]
        )

    @guarded
    async def renew(self, instance_id: str, expect: Expect) -> bool:
        """Note that the executor is alive and at work; False if the step is no longer its own."""
        now = {"$currentDate": {"action.progressed_at": True}}
        result = await self._rows.update_one({"_id": instance_id, **expect.as_filter()}, now)
        return result.matched_count == 1

    @guarded
    async def find_claimed_before(self, executor: str, boot: str) -> list[Instance]:
        """What `executor` had claimed under another boot than `boot`."""
        mine = {**_IN_PROGRESS, "action.step.executor": executor, "action.claimed_by": {"$nin": [None, boot]}}
        return [Instance.model_validate(row) async for row in self._rows.find(mine)]

    @guarded
    async def find_undelivered(self, age: float, limit: int = 500) -> list[Instance]:
        """Instances with effects that were committed more than `age` seconds ago."""
        rows = self._rows.find({"outbox.at": {"$lt": _ago(age)}}).limit(limit)
        return [Instance.model_validate(row) async for row in rows]

    @guarded
    async def find_unconfirmed(self, now: datetime, hosts: Collection[str], limit: int = 500) -> list[Instance]:
        """Instances on these hosts whose move should be confirmed by `now`, and that nothing is at work on."""
        due = {"move.confirm_by": {"$lt": now}, "vm_state": VmState.RESIZED, "task_state": None}
        rows = self._rows.find({**due, "host": {"$in": list(hosts)}}).limit(limit)
        return [Instance.model_validate(row) async for row in rows]

    @guarded
    async def count_busy(self, tasks: Collection[TaskState]) -> dict[str, int]:
        """How many instances are at one of these tasks, per host."""
        busy = {**_IN_PROGRESS, "action.step.executor": _COMPUTE, "task_state": {"$in": list(tasks)}}
        counted = {"$group": {"_id": "$host", "count": {"$sum": 1}}}
        rows = self._rows.aggregate([{"$match": busy}, counted])
        return {row["_id"]: row["count"] async for row in rows if row["_id"]}

    @guarded
    async def find_holders(
        self, ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[Holder]:
        """What these instances hold, or (`ids` None) the next ones by id, those deleted left out."""
        wanted: dict[str, Any] = {"vm_state": {"$ne": VmState.DELETED}}
        wanted["_id"] = {"$gt": after} if ids is None else {"$in": list(ids)}
        rows = self._rows.find(wanted, dict.fromkeys(_HOLDING, 1)).sort("_id", ASCENDING).limit(limit)
        return [Holder.model_validate(row) async for row in rows]

    @guarded
    async def find_stalled(self, *, unsent: float, allowance: float, limit: int = 500) -> list[Instance]:
        """Instances whose step was not sent for `unsent` seconds, or made no progress for `allowance` seconds, and was
        not sent again within them."""
        never_sent = [{"action.sent_at": None, "action.claimed_by": None}, _older("action.progressed_at", unsent)]
        stalled = [_older("action.progressed_at", allowance), _older("action.sent_at", allowance)]
        rows = self._rows.find({**_IN_PROGRESS, "$or": [{"$and": never_sent}, {"$and": stalled}]}).limit(limit)
        return [Instance.model_validate(row) async for row in rows]


def _older(path: str, seconds: float) -> dict[str, Any]:
    # By the database's clock, which wrote the time; a time that was never set is older than any.
    return {"$expr": {"$lt": [f"${path}", {"$subtract": ["$$NOW", int(seconds * 1000)]}]}}


def _ago(seconds: float) -> datetime:
    return datetime.fromtimestamp(datetime.now(UTC).timestamp() - seconds, UTC)


def stamped(effects: Sequence[Effect], at: datetime) -> list[Effect]:
    """Effects with the time of their commit, by which the sweep finds them."""
    return [{**effect, "at": at} for effect in effects]


def as_update(
    fields: Mapping[str, Any],
    begin: ActionState | None,
    step: Step | None,
    action: Mapping[str, Any],
    end: bool,
    effects: Sequence[Effect],
) -> dict[str, Any]:
    """A transition as a MongoDB update."""
    now = datetime.now(UTC)
    changed: dict[str, Any] = dict(fields)
    touched = {"updated_at": True}
    if begin is not None:
        changed["action"] = begin.model_dump()
    elif end:
        changed["action"] = None
    else:
        if step is not None:
            fresh = {"sent_at": None, "claimed_by": None, "attempt": 1, "step": step.model_dump()}
            changed |= {f"action.{name}": value for name, value in fresh.items()}
        changed |= {f"action.{name}": value for name, value in action.items()}
        if step is not None or action:
            touched["action.progressed_at"] = True
    update: dict[str, Any] = {"$currentDate": touched, "$inc": {"rev": 1}}
    if changed:
        update["$set"] = changed
    if effects:
        update["$push"] = {"outbox": {"$each": stamped(effects, now)}}
    return update
