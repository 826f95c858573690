"""The twins of quotas and aggregates, in memory: each call is one piece, so nothing is ever pending."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from virtfleet_common import quota
from virtfleet_common.quota import Amounts, Change
from virtfleet_common.records import Aggregate, ProjectQuota, QuotaHolder
from virtfleet_common.store.aggregates import Aggregates, new_aggregate
from virtfleet_common.store.quotas import Quotas


class MemoryQuotas(Quotas):
    """The twin of the quotas."""

    def __init__(self) -> None:
        self._records: dict[str, QuotaHolder] = {}
        self._limits: dict[str, dict[str, int]] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def get(self, project_id: str) -> ProjectQuota:
        await asyncio.sleep(0)
        return self._project(project_id)

    async def project_ids(self) -> list[str]:
        await asyncio.sleep(0)
        return sorted({*self._limits, *(one.project_id for one in self._records.values())})

    async def set_limits(self, project_id: str, limits: Amounts) -> None:
        await asyncio.sleep(0)
        self._limits.setdefault(project_id, {}).update(limits)

    async def clear_limits(self, project_id: str) -> None:
        await asyncio.sleep(0)
        self._limits.pop(project_id, None)

    async def holder(self, holder_id: str) -> QuotaHolder | None:
        await asyncio.sleep(0)
        return self._records.get(holder_id)

    async def holders(self, project_id: str) -> list[QuotaHolder]:
        await asyncio.sleep(0)
        return self._counting(project_id)

    async def reserve(
        self, project_id: str, holder_ids: Sequence[str], each: Amounts, *, defaults: Amounts, least: int = 1
    ) -> int:
        await asyncio.sleep(0)
        if known := [id_ for id_ in holder_ids if (one := self._records.get(id_)) and one.amounts]:
            return len(known)
        fitting = quota.fitting(self._project(project_id), defaults, each, len(holder_ids))
        if fitting < max(1, least):
            return 0
        for id_ in holder_ids[:fitting]:
            self._put(project_id, id_, quota.reserve(each))
        return fitting

    async def hold(
        self, project_id: str, holder_id: str, action_id: str, more: Amounts, *, rank: int, defaults: Amounts
    ) -> bool:
        await asyncio.sleep(0)
        return self._put(project_id, holder_id, quota.hold(action_id, more, rank), defaults)

    async def drop(self, project_id: str, holder_id: str, action_id: str) -> None:
        await asyncio.sleep(0)
        self._put(project_id, holder_id, quota.drop(action_id))

    async def settle(self, project_id: str, holder_id: str, amounts: Amounts, *, rank: int) -> None:
        await asyncio.sleep(0)
        self._put(project_id, holder_id, quota.settle(amounts, rank))

    async def release(self, project_id: str, holder_id: str) -> None:
        await asyncio.sleep(0)
        self._put(project_id, holder_id, quota.release(datetime.now(UTC)))

    async def recount(self, project_id: str) -> dict[str, int]:
        await asyncio.sleep(0)
        return {}

    def _counting(self, project_id: str) -> list[QuotaHolder]:
        return [one for one in self._records.values() if one.project_id == project_id and one.gone_at is None]

    def _project(self, project_id: str) -> ProjectQuota:
        used = quota.summed(quota.total(one) for one in self._counting(project_id))
        return ProjectQuota(id=project_id, limits=dict(self._limits.get(project_id, {})), used=used)

    def _put(self, project_id: str, holder_id: str, change: Change, defaults: Amounts | None = None) -> bool:
        held = self._records.get(holder_id) or QuotaHolder(id=holder_id, project_id=project_id)
        changed = change(held)
        more = quota.difference(held, changed)
        if defaults is not None and quota.lacking(self._project(project_id), defaults, more) is not None:
            return False
        if changed != held:
            stamp = {"version": held.version + 1, "changed_at": datetime.now(UTC)}
            self._records[holder_id] = changed.model_copy(update=stamp)
        return True


class MemoryAggregates(Aggregates):
    """The twin of the aggregates."""

    def __init__(self) -> None:
        self._records: dict[int, Aggregate] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def create(self, name: str, metadata: Mapping[str, str]) -> Aggregate | None:
        await asyncio.sleep(0)
        if self._is_taken(name, None):
            return None
        new = new_aggregate(max(self._records, default=0) + 1, name, metadata)
        self._records[new.id] = new
        return new

    async def get(self, id_: int) -> Aggregate | None:
        await asyncio.sleep(0)
        return self._records.get(id_)

    async def find(self) -> list[Aggregate]:
        await asyncio.sleep(0)
        return [one for _, one in sorted(self._records.items())]

    async def change(
        self, id_: int, *, name: str | None = None, metadata: Mapping[str, str | None] | None = None
    ) -> Aggregate | None:
        await asyncio.sleep(0)
        stored = self._records.get(id_)
        if stored is None or (name is not None and self._is_taken(name, id_)):
            return None
        merged = {**stored.metadata, **(metadata or {})}
        kept = {key: value for key, value in merged.items() if value is not None}
        return self._put(stored, name=stored.name if name is None else name, metadata=kept)

    async def add_host(self, id_: int, host: str) -> Aggregate | None:
        await asyncio.sleep(0)
        stored = self._records.get(id_)
        if stored is None or host in stored.hosts:
            return None
        return self._put(stored, hosts=[*stored.hosts, host])

    async def remove_host(self, id_: int, host: str) -> Aggregate | None:
        await asyncio.sleep(0)
        stored = self._records.get(id_)
        if stored is None or host not in stored.hosts:
            return None
        return self._put(stored, hosts=[one for one in stored.hosts if one != host])

    async def delete(self, id_: int) -> bool:
        await asyncio.sleep(0)
        stored = self._records.get(id_)
        if stored is None or stored.hosts:
            return False
        del self._records[id_]
        return True

    def _is_taken(self, name: str, except_for: int | None) -> bool:
        return any(one.name == name and one.id != except_for for one in self._records.values())

    def _put(self, stored: Aggregate, **fields: object) -> Aggregate:
        changed = stored.model_copy(update={**fields, "updated_at": datetime.now(UTC)})
        self._records[stored.id] = changed
        return changed
