"""A project's quota, as accepting code asks for it: counted before the write that needs it, or refused.

Whoever dies between the counting and that write leaves a count too much, which the audit takes back. What ends a count
(a delete, the end of a move) is an effect of the transition that ends it: see `virtfleet_common.quota`.
"""

from collections.abc import Sequence

from virtfleet_common import quota
from virtfleet_common.errors import OverQuota
from virtfleet_common.quota import Amounts
from virtfleet_common.records import Flavor, Instance, ProjectQuota
from virtfleet_common.settings import ApiSettings
from virtfleet_common.store import Store

SHOWN = {"instances": "instances", "vcpus": "cores", "ram_mb": "ram"}
"""The kinds as clients know them."""


def defaults_of(settings: ApiSettings) -> dict[str, int]:
    """The limits of a project that has none of its own."""
    return {"instances": settings.quota_instances, "vcpus": settings.quota_vcpus, "ram_mb": settings.quota_ram_mb}


class Budget:
    """See the module's text."""

    def __init__(self, store: Store, settings: ApiSettings) -> None:
        self._quotas = store.quotas
        self._defaults = defaults_of(settings)

    async def reserve(self, project_id: str, instance_ids: Sequence[str], flavor: Flavor, *, least: int) -> int:
        """Count new instances of a flavor: the first of them, as many as there is room for, but at `least` so many.

        Returns how many; the same again when it is asked again for the same ids. Raises OverQuota.
        """
        each = quota.amounts_of(flavor)
        fitting = await self._quotas.reserve(project_id, instance_ids, each, defaults=self._defaults, least=least)
        if fitting == 0:
            raise self._over(await self._quotas.get(project_id), _times(each, least))
        return fitting

    async def release(self, project_id: str, instance_id: str) -> None:
        """An instance that was counted is not there after all."""
        await self._quotas.release(project_id, instance_id)

    async def hold_increase(self, instance: Instance, flavor: Flavor, action_id: str) -> None:
        """Count what a resize to `flavor` needs more, until the move is settled. Once per action. Raises OverQuota."""
        more = quota.increase(instance.flavor, flavor)
        project_id, rank = instance.project_id, instance.rev + 1
        if more and not await self._quotas.hold(
            project_id, instance.id, action_id, more, rank=rank, defaults=self._defaults
        ):
            raise self._over(await self._quotas.get(project_id), more)

    async def drop_increase(self, instance: Instance, action_id: str) -> None:
        """The resize that it was held for is refused after all."""
        await self._quotas.drop(instance.project_id, instance.id, action_id)

    def _over(self, project: ProjectQuota, asked: Amounts) -> OverQuota:
        kind = quota.lacking(project, self._defaults, asked) or next(iter(asked))
        limit, used = quota.limits_of(project, self._defaults)[kind], project.used.get(kind, 0)
        shown = SHOWN[kind]
        return OverQuota(
            f"Quota exceeded for {shown}: Requested {asked[kind]}, but already used {used} of {limit} {shown}",
            rule=f"quota.{shown}",
            hint="Delete what is no longer needed, or ask an admin for more.",
            kind=shown,
            limit=limit,
            used=used,
            asked=asked[kind],
        )


def _times(each: Amounts, count: int) -> dict[str, int]:
    return {kind: amount * count for kind, amount in each.items()}
