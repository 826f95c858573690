"""The twin of the instances collection."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from virtfleet_common.effects import Effect
from virtfleet_common.records import (
    EVACUATION,
    ActionState,
    Holder,
    Instance,
    Step,
)
from virtfleet_common.states import EVACUABLE, TaskState, VmState
from virtfleet_common.store.expect import Expect, Mismatch
from virtfleet_common.store.instances import Delivered, InstanceQuery, Instances, as_update, stamped
from virtfleet_common.store.memory.documents import is_older, round_trip, stored, updated


class MemoryInstances(Instances):
    """The twin of the instances collection."""

    def __init__(self) -> None:
        self._records: dict[str, Instance] = {}

    @property
    def records(self) -> Mapping[str, Instance]:
        """What is stored, for the twin of the feed."""
        return self._records

    async def create_indexes(self) -> None:
        """None here."""

    async def insert(self, instance: Instance, effects: Sequence[Effect] = ()) -> Instance:
        await round_trip()
        if instance.id in self._records:
            raise Mismatch("id", instance.id, self._records[instance.id])
        new = instance.model_copy(update={"outbox": stamped(effects, instance.created_at)})
        self._records[instance.id] = stored(new)
        return new

    async def get(self, instance_id: str) -> Instance | None:
        await round_trip()
        return self._records.get(instance_id)

    async def find(self, query: InstanceQuery) -> list[Instance]:
        await round_trip()
        found = [one for one in self._records.values() if query.matches(one)]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)[: query.limit or None]

    async def project_ids(self) -> list[str]:
        await round_trip()
        return sorted({one.project_id for one in self._records.values() if one.vm_state is not VmState.DELETED})

    async def find_on_host(self, host: str) -> list[Instance]:
        await round_trip()
        return [one for one in self._records.values() if one.host == host and one.vm_state is not VmState.DELETED]

    async def find_ids(self, ids: Collection[str]) -> list[Instance]:
        await round_trip()
        return [self._records[id_] for id_ in ids if id_ in self._records]

    async def find_evacuating(self, source: str) -> list[Instance]:
        await round_trip()
        moving = [one for one in self._records.values() if one.move is not None]
        return [one for one in moving if one.move and (one.move.source, one.move.type) == (source, EVACUATION)]

    async def count_evacuating(self) -> int:
        await round_trip()
        return sum(one.move is not None and one.move.type == EVACUATION for one in self._records.values())

    async def find_evacuable(
        self, hosts: Collection[str], *, is_wanted: bool, besides: Collection[str] = (), limit: int = 1000
    ) -> list[Instance]:
        await round_trip()
        idle = [one for one in self._records.values() if one.host in hosts and one.task_state is None and not one.move]
        wanted = [
            one
            for one in idle
            if (one.metadata.get("ha") != "false" if is_wanted else one.metadata.get("ha") == "true")
        ]
        return [one for one in wanted if one.vm_state in EVACUABLE and one.id not in besides][:limit]

    async def find_at(self, executors: Collection[str]) -> list[Instance]:
        await round_trip()
        return [one for one in self._records.values() if one.action and one.action.step.executor in executors]

    async def touch_on_host(self, host: str) -> int:
        await round_trip()
        idle = [
            one for one in self._records.values()
            if one.host == host and one.task_state is None and one.vm_state is not VmState.DELETED
        ]  # fmt: skip
        for one in idle:
            self._records[one.id] = one.model_copy(update={"rev": one.rev + 1})
        return len(idle)

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
        await round_trip()
        stored = self._records.get(instance_id)
        if stored is None:
            raise Mismatch("instance", None, None)
        if (found := expect.mismatch(stored)) is not None:
            raise Mismatch(*found, stored)
        update = as_update(set or {}, begin, step, action or {}, end, effects)
        self._records[instance_id] = updated(stored, update)
        return self._records[instance_id].model_copy(update={"outbox": ()})

    async def mark_delivered(self, delivered: Delivered) -> None:
        for expect, update in delivered.as_updates():
            await self._update(delivered.instance_id, expect, update)

    async def renew(self, instance_id: str, expect: Expect) -> bool:
        return await self._update(instance_id, expect, {"$currentDate": {"action.progressed_at": True}})

    async def find_claimed_before(self, executor: str, boot: str) -> list[Instance]:
        await round_trip()
        return [
            one
            for one in self._records.values()
            if one.action and one.action.step.executor == executor and one.action.claimed_by not in (None, boot)
        ]

    async def find_undelivered(self, age: float, limit: int = 500) -> list[Instance]:
        await round_trip()
        found = [one for one in self._records.values() if any(is_older(effect["at"], age) for effect in one.outbox)]
        return found[:limit]

    async def find_unconfirmed(self, now: datetime, hosts: Collection[str], limit: int = 500) -> list[Instance]:
        await round_trip()
        return [one for one in self._records.values() if one.host in hosts and _is_unconfirmed(one, now)][:limit]

    async def count_busy(self, tasks: Collection[TaskState]) -> dict[str, int]:
        await round_trip()
        busy = (
            one.host
            for one in self._records.values()
            if one.action and one.action.step.executor.startswith("compute.") and one.task_state in tasks and one.host
        )
        return dict(Counter(busy))

    async def find_holders(
        self, ids: Collection[str] | None = None, *, after: str = "", limit: int = 1000
    ) -> list[Holder]:
        await round_trip()
        found = (
            one
            for id_, one in sorted(self._records.items())
            if one.vm_state is not VmState.DELETED and (id_ > after if ids is None else id_ in ids)
        )
        return [Holder.model_validate(one.document()) for one in islice(found, limit)]

    async def find_stalled(self, *, unsent: float, allowance: float, limit: int = 500) -> list[Instance]:
        await round_trip()
        return [one for one in self._records.values() if _is_stalled(one.action, unsent, allowance)][:limit]

    async def _update(self, instance_id: str, expect: Expect, update: Mapping[str, Any]) -> bool:
        await round_trip()
        stored = self._records.get(instance_id)
        if stored is None or expect.mismatch(stored) is not None:
            return False
        self._records[instance_id] = updated(stored, update)
        return True


def _is_unconfirmed(instance: Instance, now: datetime) -> bool:
    until = instance.move.confirm_by if instance.move else None
    return until is not None and until < now and (instance.vm_state, instance.task_state) == (VmState.RESIZED, None)


def _is_stalled(action: ActionState | None, unsent: float, allowance: float) -> bool:
    if action is None:
        return False
    is_unsent = action.sent_at is None and action.claimed_by is None and is_older(action.progressed_at, unsent)
    is_stuck = is_older(action.progressed_at, allowance)
    return is_unsent or (is_stuck and (action.sent_at is None or is_older(action.sent_at, allowance)))
