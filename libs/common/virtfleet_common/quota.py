"""What an instance counts against its project's quota, and how that changes. No I/O.

An instance counts from its creation to its deletion. While it is resized it counts, per kind, the larger of the old
and the new size, so that both ways stay open: the increase is held beside its amounts, under the id of the action that
asked for it, until the move ends and the instance is settled on one size.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from virtfleet_common import effects
from virtfleet_common.effects import Effect
from virtfleet_common.records import Flavor, Instance, ProjectQuota, QuotaHold, QuotaHolder

KINDS = ("instances", "vcpus", "ram_mb")
UNLIMITED = -1
Amounts = Mapping[str, int]
Change = Callable[[QuotaHolder], QuotaHolder]
"""What a holder becomes; the same again if there is nothing to change, so that a change may be made twice."""


def amounts_of(flavor: Flavor) -> dict[str, int]:
    """What one instance of a flavor counts."""
    return {"instances": 1, "vcpus": flavor.vcpus, "ram_mb": flavor.ram_mb}


def counted(instance: Instance) -> dict[str, int]:
    """What an instance counts now: of every size that it has or may go to or back to, the largest of each kind."""
    sizes = [amounts_of(one) for one in (instance.flavor, instance.old_flavor, instance.new_flavor) if one]
    return {kind: max(size[kind] for size in sizes) for kind in KINDS}


def increase(old: Flavor, new: Flavor) -> dict[str, int]:
    """What a resize asks for on top of what is counted; a kind that shrinks or stays asks for nothing."""
    before, after = amounts_of(old), amounts_of(new)
    return {kind: after[kind] - before[kind] for kind in KINDS if after[kind] > before[kind]}


def settled(instance: Instance, flavor: Flavor) -> Effect:
    """To commit with the transition after which an instance has `flavor` and no open move (confirmed, reverted, given
    up): what the move held goes back. `instance` is the record before that transition."""
    return effects.quota_set(instance.project_id, instance.id, amounts_of(flavor), rank=instance.rev + 1)


def gone(instance: Instance) -> Effect:
    """To commit with the transition that makes an instance deleted."""
    return effects.quota_release(instance.project_id, instance.id)


# The changes of one holder


def reserve(amounts: Amounts) -> Change:
    """It counts `amounts`, unless it counts already."""

    def change(held: QuotaHolder) -> QuotaHolder:
        if held.amounts or held.moves:
            return held
        return held.model_copy(update={"amounts": dict(amounts), "gone_at": None})

    return change


def hold(action_id: str, amounts: Amounts, rank: int) -> Change:
    """It counts `amounts` more, for a move."""

    def change(held: QuotaHolder) -> QuotaHolder:
        if held.gone_at is not None:
            return held
        return held.model_copy(update={"moves": {**held.moves, action_id: QuotaHold(amounts=dict(amounts), rank=rank)}})

    return change


def drop(action_id: str) -> Change:
    """It no longer counts what was held for a move."""

    def change(held: QuotaHolder) -> QuotaHolder:
        return held.model_copy(update={"moves": {id_: one for id_, one in held.moves.items() if id_ != action_id}})

    return change


def settle(amounts: Amounts, rank: int) -> Change:
    """It counts `amounts` and nothing for moves up to `rank`; whoever comes late with an older rank changes nothing."""

    def change(held: QuotaHolder) -> QuotaHolder:
        if held.gone_at is not None or rank < held.rank:
            return held
        later = {id_: one for id_, one in held.moves.items() if one.rank > rank}
        return held.model_copy(update={"amounts": dict(amounts), "moves": later, "rank": rank})

    return change


def release(now: datetime) -> Change:
    """It counts nothing any more. It is remembered as gone, so that what comes late does not count it again."""

    def change(held: QuotaHolder) -> QuotaHolder:
        if held.gone_at is not None or not held.version:
            return held
        return held.model_copy(update={"amounts": {}, "moves": {}, "gone_at": now})

    return change


# Sums


def total(held: QuotaHolder) -> dict[str, int]:
    """All that a holder counts."""
    return summed([held.amounts, *(one.amounts for one in held.moves.values())])


def difference(before: QuotaHolder, after: QuotaHolder) -> dict[str, int]:
    """What a change adds to the counters; kinds that stay are left out."""
    old, new = total(before), total(after)
    return {kind: new[kind] - old[kind] for kind in KINDS if new[kind] != old[kind]}


def summed(parts: Iterable[Amounts]) -> dict[str, int]:
    """The sum of some amounts, of every kind."""
    sums = dict.fromkeys(KINDS, 0)
    for part in parts:
        for kind, amount in part.items():
            sums[kind] = sums.get(kind, 0) + amount
    return sums


def limits_of(project: ProjectQuota, defaults: Amounts) -> dict[str, int]:
    """A project's own limits, and the defaults for the other kinds."""
    return {kind: project.limits.get(kind, defaults.get(kind, UNLIMITED)) for kind in KINDS}


def lacking(project: ProjectQuota, defaults: Amounts, asked: Amounts) -> str | None:
    """The first kind that a project has no room for; None if there is room for everything asked."""
    limits = limits_of(project, defaults)
    wanted = (kind for kind in KINDS if asked.get(kind, 0) > 0 and limits[kind] >= 0)
    return next((kind for kind in wanted if project.used.get(kind, 0) + asked[kind] > limits[kind]), None)


def fitting(project: ProjectQuota, defaults: Amounts, each: Amounts, most: int) -> int:
    """How many holders of `each` a project has room for, `most` at the most."""
    limits = limits_of(project, defaults)
    limited = (kind for kind in KINDS if each.get(kind, 0) > 0 and limits[kind] >= 0)
    return max(0, min([most, *((limits[kind] - project.used.get(kind, 0)) // each[kind] for kind in limited)]))
