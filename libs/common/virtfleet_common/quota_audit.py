"""Proves that projects' quotas count what there is, and mends what differs.

Every instance that is not deleted counts, once, by its size; nothing else counts. What is younger than `patience` is
left alone: it may be in the middle of being accepted. Mending uses the same idempotent changes as everybody, so the
audit may run beside any traffic, in any number of replicas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from virtfleet_common import quota
from virtfleet_common.records import Instance, QuotaHolder
from virtfleet_common.states import VmState
from virtfleet_common.store import InstanceQuery, Store

_PAGE = 200


@dataclass(frozen=True, slots=True)
class Findings:
    """What was wrong in one project, and is mended: instances that did not count, that counted though they are gone,
    that counted another size; and by how much the counters were off."""

    project_id: str
    uncounted: Sequence[str] = ()
    gone: Sequence[str] = ()
    wrong_size: Sequence[str] = ()
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was wrong."""
        return not (self.uncounted or self.gone or self.wrong_size or self.counters)


class QuotaAudit:
    """See the module's text. `patience` is in seconds."""

    def __init__(self, store: Store, patience: float = 300.0) -> None:
        self._store = store
        self._patience = timedelta(seconds=patience)

    async def run(self) -> list[Findings]:
        """Audit every project; returns what was wrong, by project."""
        projects = {*await self._store.quotas.project_ids(), *await self._store.instances.project_ids()}
        findings = [await self.audit(project_id) for project_id in sorted(projects)]
        return [one for one in findings if not one.is_clean]

    async def audit(self, project_id: str) -> Findings:
        """Compare one project's holders with its instances, then its counters with its holders."""
        instances = await self._instances(project_id)
        held = {one.id: one for one in await self._store.quotas.holders(project_id)}
        uncounted = [id_ for id_, one in instances.items() if id_ not in held and await self._count(one)]
        gone = [id_ for id_, one in held.items() if id_ not in instances and await self._release(one)]
        both = [(one, held[id_]) for id_, one in instances.items() if id_ in held]
        wrong_size = [one.id for one, holder in both if await self._resize(one, holder)]
        counters = await self._store.quotas.recount(project_id)
        return Findings(project_id, uncounted, gone, wrong_size, counters)

    async def _instances(self, project_id: str) -> dict[str, Instance]:
        found: dict[str, Instance] = {}
        query = InstanceQuery(project_id=project_id, limit=_PAGE)
        while True:
            rows = await self._store.instances.find(query)
            found |= {row.id: row for row in rows}
            if len(rows) < _PAGE:
                return found
            query = replace(query, after=rows[-1])

    async def _count(self, instance: Instance) -> bool:
        """It is not counted: count it, whatever the limits, unless it was deleted since it was read."""
        if self._is_young(instance.created_at):
            return False
        quotas, amounts = self._store.quotas, quota.counted(instance)
        if not await quotas.reserve(instance.project_id, [instance.id], amounts, defaults={}):
            return False
        if await self._is_gone(instance.id):
            await quotas.release(instance.project_id, instance.id)
            return False
        return True

    async def _release(self, holder: QuotaHolder) -> bool:
        if self._is_young(holder.changed_at) or not await self._is_gone(holder.id):
            return False
        await self._store.quotas.release(holder.project_id, holder.id)
        return True

    async def _resize(self, instance: Instance, holder: QuotaHolder) -> bool:
        """What it counts is not its size, and nobody is about to say so."""
        amounts = quota.counted(instance)
        is_told = any(effect["kind"] == "quota" for effect in instance.outbox)
        if quota.total(holder) == amounts or is_told or self._is_young(holder.changed_at):
            return False
        rank = instance.rev + 1  # what was held for a write that never came goes as well
        await self._store.quotas.settle(instance.project_id, instance.id, amounts, rank=rank)
        return True

    async def _is_gone(self, instance_id: str) -> bool:
        stored = await self._store.instances.get(instance_id)
        return stored is None or stored.vm_state is VmState.DELETED

    def _is_young(self, at: datetime | None) -> bool:
        return at is not None and datetime.now(UTC) - at < self._patience
