"""The store in memory, for tests: the twin of `Store`, held to it by one contract suite.

Each part is a subclass of the real one, so that the type checker holds their signatures together; nothing of the
database is inherited. Every call lets others run first, as a round trip would, and then acts in one piece, as one
document's write does. What is stored goes through BSON, so that what the database would refuse or round is refused or
rounded here.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

import bson
from bson.codec_options import CodecOptions

from virtfleet_common.effects import Effect
from virtfleet_common.records import (
    ActionRecord,
    ActionState,
    Allocation,
    AmqpUser,
    Cleanup,
    Flavor,
    Holder,
    Host,
    HostFailure,
    Image,
    Instance,
    Migration,
    Record,
    Reply,
    Resources,
    ServerGroup,
    Step,
    Token,
)
from virtfleet_common.states import HostState, TaskState, VmState
from virtfleet_common.store import Store
from virtfleet_common.store.actions import Actions
from virtfleet_common.store.catalogue import Catalogue
from virtfleet_common.store.expect import Expect, Mismatch
from virtfleet_common.store.hosts import (
    FAILURES_KEPT,
    KINDS,
    Hosts,
    as_given_back,
    as_taken,
    has_fewer,
    has_room,
    held_by,
)
from virtfleet_common.store.instances import Delivered, InstanceQuery, Instances, as_update, stamped
from virtfleet_common.store.memory_feed import MemoryHostFeed, MemoryPins
from virtfleet_common.store.memory_quotas import MemoryAggregates, MemoryQuotas
from virtfleet_common.store.migrations import Cleanups, MigrationQuery, Migrations
from virtfleet_common.store.pins import Pins

R = TypeVar("R", bound=Record)
_BSON: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True)


class MemoryStore(Store):
    """A store that is empty when made and gone with the process."""

    def __init__(self) -> None:
        groups, aggregates = MemoryCatalogue(ServerGroup), MemoryAggregates()
        pins = MemoryPins(groups.records)
        hosts = MemoryHosts(pins)
        super().__init__(
            instances=MemoryInstances(),
            actions=MemoryActions(),
            hosts=hosts,
            host_feed=MemoryHostFeed(hosts.records, aggregates),
            pins=pins,
            migrations=MemoryMigrations(),
            cleanups=MemoryCleanups(),
            quotas=MemoryQuotas(),
            aggregates=aggregates,
            server_groups=groups,
            flavors=MemoryCatalogue(Flavor, unique="name"),
            images=MemoryCatalogue(Image),
            tokens=MemoryCatalogue(Token),
            amqp_users=MemoryCatalogue(AmqpUser),
            replies=MemoryCatalogue(Reply),
            client=None,
        )

    async def prepare(self) -> None:
        """Nothing to create."""

    async def ping(self) -> None:
        """It is always there."""

    def close(self) -> None:
        """Nothing to close."""


class MemoryInstances(Instances):
    """The twin of the instances collection."""

    def __init__(self) -> None:
        self._records: dict[str, Instance] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def insert(self, instance: Instance, effects: Sequence[Effect] = ()) -> Instance:
        await _round_trip()
        if instance.id in self._records:
            raise Mismatch("id", instance.id, self._records[instance.id])
        new = instance.model_copy(update={"outbox": stamped(effects, instance.created_at)})
        self._records[instance.id] = _stored(new)
        return new

    async def get(self, instance_id: str) -> Instance | None:
        await _round_trip()
        return self._records.get(instance_id)

    async def find(self, query: InstanceQuery) -> list[Instance]:
        await _round_trip()
        found = [one for one in self._records.values() if query.matches(one)]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)[: query.limit or None]

    async def project_ids(self) -> list[str]:
        await _round_trip()
        return sorted({one.project_id for one in self._records.values() if one.vm_state is not VmState.DELETED})

    async def find_on_host(self, host: str) -> list[Instance]:
        await _round_trip()
        return [one for one in self._records.values() if one.host == host and one.vm_state is not VmState.DELETED]

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
        await _round_trip()
        stored = self._records.get(instance_id)
        if stored is None:
            raise Mismatch("instance", None, None)
        if (found := expect.mismatch(stored)) is not None:
            raise Mismatch(*found, stored)
        update = as_update(set or {}, begin, step, action or {}, end, effects)
        self._records[instance_id] = _updated(stored, update)
        return self._records[instance_id].model_copy(update={"outbox": ()})

    async def mark_delivered(self, delivered: Delivered) -> None:
        for expect, update in delivered.as_updates():
            await self._update(delivered.instance_id, expect, update)

    async def renew(self, instance_id: str, expect: Expect) -> bool:
        return await self._update(instance_id, expect, {"$currentDate": {"action.progressed_at": True}})

    async def find_claimed_before(self, executor: str, boot: str) -> list[Instance]:
        await _round_trip()
        return [
            one
            for one in self._records.values()
            if one.action and one.action.step.executor == executor and one.action.claimed_by not in (None, boot)
        ]

    async def find_undelivered(self, age: float, limit: int = 500) -> list[Instance]:
        await _round_trip()
        found = [one for one in self._records.values() if any(_is_older(effect["at"], age) for effect in one.outbox)]
        return found[:limit]

    async def find_unconfirmed(self, now: datetime, limit: int = 500) -> list[Instance]:
        await _round_trip()
        return [one for one in self._records.values() if _is_unconfirmed(one, now)][:limit]

    async def count_busy(self, tasks: Collection[TaskState]) -> dict[str, int]:
        await _round_trip()
        busy = (
            one.host
            for one in self._records.values()
            if one.action and one.action.step.executor.startswith("compute.") and one.task_state in tasks and one.host
        )
        return dict(Counter(busy))

    async def find_holders(
        self, ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[Holder]:
        await _round_trip()
        found = (
            one
            for id_, one in sorted(self._records.items())
            if one.vm_state is not VmState.DELETED and (id_ > after if ids is None else id_ in ids)
        )
        return [Holder.model_validate(one.document()) for one in islice(found, limit)]

    async def find_stalled(self, *, unsent: float, allowance: float, limit: int = 500) -> list[Instance]:
        await _round_trip()
        return [one for one in self._records.values() if _is_stalled(one.action, unsent, allowance)][:limit]

    async def _update(self, instance_id: str, expect: Expect, update: Mapping[str, Any]) -> bool:
        await _round_trip()
        stored = self._records.get(instance_id)
        if stored is None or expect.mismatch(stored) is not None:
            return False
        self._records[instance_id] = _updated(stored, update)
        return True


def _is_unconfirmed(instance: Instance, now: datetime) -> bool:
    until = instance.move.confirm_by if instance.move else None
    return until is not None and until < now and (instance.vm_state, instance.task_state) == (VmState.RESIZED, None)


class MemoryActions(Actions):
    """The twin of the actions collection."""

    def __init__(self) -> None:
        self._records: dict[str, ActionRecord] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def put(self, action_id: str, fields: Mapping[str, Any]) -> None:
        await _round_trip()
        stored = self._records.get(action_id) or ActionRecord(id=action_id)
        self._records[action_id] = _updated(stored, {"$set": fields})

    async def get(self, action_id: str) -> ActionRecord | None:
        await _round_trip()
        return self._records.get(action_id)

    async def find(self, instance_id: str, limit: int = 1000) -> list[ActionRecord]:
        await _round_trip()
        long_ago = datetime.min.replace(tzinfo=UTC)
        mine = [one for one in self._records.values() if one.instance_id == instance_id]
        return sorted(mine, key=lambda one: one.start or long_ago, reverse=True)[: limit or None]


class MemoryMigrations(Migrations):
    """The twin of the migrations collection."""

    def __init__(self) -> None:
        self._documents: dict[str, dict[str, Any]] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def put(self, migration_id: str, fields: Mapping[str, Any], rank: int) -> None:
        await _round_trip()
        stored = self._documents.get(migration_id, {"_id": migration_id, "rank": rank})
        if stored["rank"] <= rank:
            document = {**stored, **fields, "rank": rank}
            self._documents[migration_id] = bson.decode(bson.encode(document), _BSON)

    async def get(self, migration_id: str) -> Migration | None:
        await _round_trip()
        document = self._documents.get(migration_id)
        return Migration.model_validate(document) if document else None

    async def find(self, fields: Mapping[str, Any] | None = None, limit: int = 1000) -> list[Migration]:
        await _round_trip()
        wanted = (fields or {}).items()
        found = [Migration.model_validate(one) for one in self._documents.values() if wanted <= one.items()]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)[:limit]

    async def find_page(self, query: MigrationQuery) -> list[Migration]:
        await _round_trip()
        found = [one for one in map(Migration.model_validate, self._documents.values()) if query.matches(one)]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)[: query.limit or None]


class MemoryCleanups(Cleanups):
    """The twin of the cleanups collection."""

    def __init__(self) -> None:
        self._records: dict[str, Cleanup] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def add(self, cleanup: Cleanup) -> None:
        await _round_trip()
        self._records.setdefault(cleanup.id, cleanup)

    async def get(self, cleanup_id: str) -> Cleanup | None:
        await _round_trip()
        return self._records.get(cleanup_id)

    async def find(self, host: str | None = None) -> list[Cleanup]:
        await _round_trip()
        owed = [one for one in self._records.values() if host in (None, one.host)]
        return sorted(owed, key=lambda one: one.created_at)

    async def remove(self, cleanup_id: str) -> None:
        await _round_trip()
        self._records.pop(cleanup_id, None)


class MemoryHosts(Hosts):
    """The twin of the hosts collection."""

    def __init__(self, pins: Pins) -> None:
        self._records: dict[str, Host] = {}
        self._pins = pins

    @property
    def records(self) -> dict[str, Host]:
        """What is stored."""
        return self._records

    async def create_indexes(self) -> None:
        """None here."""

    async def register(self, host_id: str, *, uuid: str, limits: Resources, facts: Mapping[str, Any]) -> Host:
        await _round_trip()
        now = datetime.now(UTC)
        stored = self._records.get(host_id) or Host(id=host_id, uuid=uuid, created_at=now)
        free = {kind: getattr(limits, kind) - sum(getattr(one, kind) for one in stored.allocations) for kind in KINDS}
        sequence = stored.sequence if stored.boot_id == facts.get("boot_id") else 0
        known = {
            "uuid": uuid, "limits": limits.model_dump(), "free": free, "last_seen": now, "sequence": sequence,
            "placed": len(stored.allocations),
        }  # fmt: skip
        self._records[host_id] = _updated(stored, {"$set": {**known, **facts}})
        return self._records[host_id]

    async def get(self, host_id: str) -> Host | None:
        await _round_trip()
        return self._records.get(host_id)

    async def get_state(self, host_id: str) -> HostState | None:
        await _round_trip()
        host = self._records.get(host_id)
        return host.state if host else None

    async def find(self) -> list[Host]:
        await _round_trip()
        return [host.model_copy(update={"allocations": ()}) for _, host in sorted(self._records.items())]

    async def put_seen(self, seen: Mapping[str, Mapping[str, Any]]) -> None:
        await _round_trip()
        for host_id, fields in seen.items():
            host = self._records.get(host_id)
            if host and host.boot_id == fields["boot_id"] and host.sequence < fields["sequence"]:
                self._records[host_id] = _updated(host, {"$set": fields, "$currentDate": {"last_seen": True}})

    async def set_fields(
        self, host_id: str, fields: Mapping[str, Any], *, was: Mapping[str, Any] | None = None
    ) -> bool:
        await _round_trip()
        host = self._records.get(host_id)
        if host is None or not _has(host.document(), was or {}):
            return False
        self._records[host_id] = _updated(host, {"$set": fields})
        return True

    async def find_page(self, after: str = "", limit: int = 500) -> list[Host]:
        await _round_trip()
        return [host for host_id, host in sorted(self._records.items()) if host_id > after][:limit]

    async def find_members(self, group_id: str) -> dict[str, list[str]]:
        await _round_trip()
        found = {
            host_id: sorted({one.instance_id for one in host.allocations if one.group == group_id})
            for host_id, host in self._records.items()
        }
        return {host_id: members for host_id, members in found.items() if members}

    async def find_holding(self, instance_ids: Sequence[str]) -> list[str]:
        await _round_trip()
        wanted = set(instance_ids)
        return [id_ for id_, host in self._records.items() if wanted & {one.instance_id for one in host.allocations}]

    async def note_failure(self, host_id: str, attempt: str) -> None:
        await _round_trip()
        host = self._records.get(host_id)
        if host and all(one.id != attempt for one in host.failures):
            failures = [*host.failures, HostFailure(id=attempt, at=datetime.now(UTC))]
            self._records[host_id] = _stored(host.model_copy(update={"failures": failures[-FAILURES_KEPT:]}))

    async def claim(self, host_id: str, wanted: Allocation, *, most_in_group: int | None = None) -> bool:
        await _round_trip()
        host = self._records.get(host_id)
        if host is None:
            return False
        if any(one.claim == wanted.claim for one in host.allocations):
            return True
        if not has_room(host, wanted) or (most_in_group and not has_fewer(host, wanted, most_in_group)):
            return False
        self._records[host_id] = _updated(host, as_taken(wanted))
        return True

    async def find_claim(self, claim: str) -> str | None:
        await _round_trip()
        holding = (id_ for id_, host in self._records.items() if any(one.claim == claim for one in host.allocations))
        return next(holding, None)

    async def release(self, instance_id: str, claim: str | None = None, host_id: str | None = None) -> int:
        await _round_trip()
        released = [
            (name, held)
            for name, host in self._records.items()
            for held in held_by(host.allocations, instance_id, claim)
            if host_id in (None, name)
        ]
        for name, held in released:
            self._records[name] = _updated(self._records[name], as_given_back(held))
        for name, held in released:
            if held.group:
                await self._pins.unpin(held.group, held.claim, name)
        return len(released)


class MemoryCatalogue(Catalogue[R]):
    """The twin of a small collection."""

    def __init__(self, record: type[R], *, unique: str | None = None) -> None:
        self._records: dict[str, R] = {}
        self._record = record
        self._unique = unique

    @property
    def records(self) -> dict[str, R]:
        """What is stored."""
        return self._records

    async def create_indexes(self) -> None:
        """None here."""

    async def add(self, record: R) -> bool:
        await _round_trip()
        id_ = record.document()["_id"]
        if id_ in self._records or self._is_taken(record):
            return False
        self._records[id_] = _stored(record)
        return True

    async def replace(self, record: R) -> None:
        await _round_trip()
        self._records[record.document()["_id"]] = _stored(record)

    async def get(self, id_: str) -> R | None:
        await _round_trip()
        return self._records.get(id_)

    async def find(self, fields: Mapping[str, Any] | None = None) -> list[R]:
        await _round_trip()
        return [one for _, one in sorted(self._records.items()) if _has(one.document(), fields or {})]

    async def delete(self, id_: str) -> bool:
        await _round_trip()
        return self._records.pop(id_, None) is not None

    def _is_taken(self, record: R) -> bool:
        unique = self._unique
        return unique is not None and any(getattr(one, unique) == getattr(record, unique) for one in self._all())

    def _all(self) -> Iterable[R]:
        return self._records.values()


async def _round_trip() -> None:
    await asyncio.sleep(0)


def _is_older(at: datetime, seconds: float) -> bool:
    return at < datetime.now(UTC) - timedelta(seconds=seconds)


def _is_stalled(action: ActionState | None, unsent: float, allowance: float) -> bool:
    if action is None:
        return False
    is_unsent = action.sent_at is None and action.claimed_by is None and _is_older(action.progressed_at, unsent)
    is_stuck = _is_older(action.progressed_at, allowance)
    return is_unsent or (is_stuck and (action.sent_at is None or _is_older(action.sent_at, allowance)))


def _stored(record: R) -> R:
    """The record as the database gives it back: times in milliseconds, sequences as lists."""
    return type(record).model_validate(bson.decode(bson.encode(record.document()), _BSON))


def _updated(record: R, update: Mapping[str, Any]) -> R:
    """The record after a MongoDB update, of the operators that the store uses."""
    document = record.document()
    now = datetime.now(UTC)
    for path, value in update.get("$set", {}).items():
        _put(document, path, value)
    for path in update.get("$currentDate", {}):
        _put(document, path, now)
    for path, amount in update.get("$inc", {}).items():
        _put(document, path, _at(document, path) + amount)
    for path, pushed in update.get("$push", {}).items():
        _put(document, path, [*_at(document, path), *pushed.get("$each", [pushed])])
    for path, unwanted in update.get("$pull", {}).items():
        _put(document, path, [one for one in _at(document, path) if not _is_pulled(one, unwanted)])
    return type(record).model_validate(bson.decode(bson.encode(document), _BSON))


def _is_pulled(one: Mapping[str, Any], unwanted: Mapping[str, Any]) -> bool:
    return all(one[name] in (v["$in"] if isinstance(v, Mapping) else [v]) for name, v in unwanted.items())


def _has(document: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    return all(_at(document, path) in (v if isinstance(v, list) else [v]) for path, v in fields.items())


def _at(document: Mapping[str, Any], path: str) -> Any:
    found: Any = document
    for name in path.split("."):
        found = found.get(name) if found is not None else None
    return found


def _put(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        document = document.setdefault(name, {})
    document[last] = value
