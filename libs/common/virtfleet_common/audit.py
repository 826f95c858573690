"""Do the hosts' books agree with the instances? A comparison without I/O: it names every difference.

A place on a host is held by an instance (`claim` on `host`), by its open move (on source and destination), or by a
clean-up that the host owes. A claim that none of them holds is leaked, unless the step that made it is still the
current step of its action, which may be about to write it down. Hosts have to be read before instances, and instances
before clean-ups: what a host held then is written down by now, or never will be.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from virtfleet_common.records import Allocation, Cleanup, Holder, Host, Resources, ServerGroup
from virtfleet_common.records.instance import step_id
from virtfleet_common.states import VmState

KINDS = ("vcpus", "ram_mb", "disk_gb")


class Kind(StrEnum):
    """What can be wrong."""

    LEAKED_CLAIM = "leaked_claim"
    """A host holds a place for a claim that nothing else knows. Mended: the claim is given back."""
    LEAKED_PIN = "leaked_pin"
    """A group is tied to a host by a claim that the host does not have. Mended: the pin is taken away."""
    MISSING_CLAIM = "missing_claim"
    """Something says it holds a claim, and the host does not know it."""
    MISSING_PIN = "missing_pin"
    """A member of an affinity group has a place, and does not tie the group."""
    WRONG_AMOUNT = "wrong_amount"
    """A claim is of another size than what it is held for."""
    WRONG_SUM = "wrong_sum"
    """What a host has free is not its limits less its allocations, or their number is wrong."""
    OVERCOMMITTED = "overcommitted"
    """A host's allocations exceed its limits (which may have been lowered since)."""
    GROUP_BROKEN = "group_broken"
    """Members of a group are placed against its rule."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is wrong, on a host or in a group, with the numbers."""

    kind: Kind
    host: str | None
    claim: str | None = None
    instance_id: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes it the same difference when it is seen again."""
        return self.kind, self.host, self.claim, self.instance_id, self.facts.get("group")


@dataclass(frozen=True, slots=True)
class Books:
    """What was read, in the order of the fields."""

    hosts: Sequence[Host]
    holders: Sequence[Holder]
    cleanups: Sequence[Cleanup]
    groups: Sequence[ServerGroup] = ()


Place = tuple[str, str]
"""Host and claim."""


def compare(books: Books) -> list[Difference]:
    """Every difference between hosts, instances, moves, clean-ups and groups."""
    holders = {one.id: one for one in books.holders}
    places = {(host.id, one.claim): one for host in books.hosts for one in host.allocations}
    known = {host.id for host in books.hosts}
    held = dict(_held(books))
    return [
        *(found for place, one in places.items() for found in _of_allocation(place, one, held, holders)),
        *(_missing(place, why) for place, why in held.items() if place not in places and place[0] in known and why[2]),
        *(found for host in books.hosts for found in _of_host(host)),
        *(found for group in books.groups for found in _of_group(group, places, holders)),
    ]


def _held(books: Books) -> Iterator[tuple[Place, tuple[str, Resources | None, bool]]]:
    """Every place that something holds: the instance, its size if that is known, and whether it must be there."""
    for holder in books.holders:
        for cleanup in _owed(holder):
            if cleanup.claim:
                yield (cleanup.host, cleanup.claim), (holder.id, None, False)
    for cleanup in books.cleanups:
        if cleanup.claim:
            yield (cleanup.host, cleanup.claim), (cleanup.instance_id, None, False)
    for holder in books.holders:
        move, is_sure = holder.move, holder.vm_state is not VmState.DELETED
        if move is not None:
            has_switched = holder.claim == move.claim and move.claim is not None
            if move.source_claim:
                size = holder.old_flavor if has_switched else holder.flavor
                yield (move.source, move.source_claim), (holder.id, size, is_sure)
            if move.destination and move.claim:
                yield (
                    (move.destination, move.claim),
                    (holder.id, holder.flavor if has_switched else holder.new_flavor, is_sure),
                )
        if holder.host and holder.claim:
            yield (holder.host, holder.claim), (holder.id, holder.flavor, is_sure)


def _owed(holder: Holder) -> Iterator[Cleanup]:
    """Clean-ups that were committed with the instance, and are not in their collection yet."""
    for effect in holder.outbox:
        if effect.get("kind") == "cleanup":
            yield Cleanup.model_validate(effect["cleanup"])


def _of_allocation(
    place: Place,
    one: Allocation,
    held: Mapping[Place, tuple[str, Resources | None, bool]],
    holders: Mapping[str, Holder],
) -> Iterator[Difference]:
    holder = holders.get(one.instance_id)
    if place not in held:
        if holder is None or not _may_still_hold(holder, one):
            yield Difference(Kind.LEAKED_CLAIM, place[0], one.claim, one.instance_id, _amounts(one))
        return
    size = held[place][1]
    if size is not None and _amounts(size) != _amounts(one):
        facts = {"allocated": _amounts(one), "needed": _amounts(size)}
        yield Difference(Kind.WRONG_AMOUNT, place[0], one.claim, one.instance_id, facts)


def _may_still_hold(holder: Holder, one: Allocation) -> bool:
    """The claim's step is still current, or the release of the claim is under way."""
    action_id, _, seq = one.claim.rpartition(":")
    action = holder.action
    if action is not None and (action.id, str(action.step.seq)) == (action_id, seq):
        return True
    return any(effect.get("kind") == "release" and effect.get("claim") in (None, one.claim) for effect in holder.outbox)


def _missing(place: Place, why: tuple[str, Resources | None, bool]) -> Difference:
    instance_id, size, _ = why
    return Difference(Kind.MISSING_CLAIM, place[0], place[1], instance_id, _amounts(size) if size else {})


def _of_host(host: Host) -> Iterator[Difference]:
    sums = {kind: sum(getattr(one, kind) for one in host.allocations) for kind in KINDS}
    right = {kind: getattr(host.limits, kind) - sums[kind] for kind in KINDS}
    if right != _amounts(host.free) or host.placed != len(host.allocations):
        facts = {"free": _amounts(host.free), "right": right, "placed": host.placed, "count": len(host.allocations)}
        yield Difference(Kind.WRONG_SUM, host.id, facts=facts)
    over = {kind: -amount for kind, amount in right.items() if amount < 0}
    if over:
        yield Difference(Kind.OVERCOMMITTED, host.id, facts={"over": over})


def _of_group(
    group: ServerGroup, places: Mapping[Place, Allocation], holders: Mapping[str, Holder]
) -> Iterator[Difference]:
    mine = {place: one for place, one in places.items() if one.group == group.id}
    about = {"group": group.id}
    if group.policy == "affinity":
        tied = {(pin.host, pin.claim) for pin in group.pins}
        for place, one in mine.items():
            if place not in tied:
                yield Difference(Kind.MISSING_PIN, place[0], place[1], one.instance_id, about)
        for pin in group.pins:
            holder = holders.get(pin.instance_id)
            if (pin.host, pin.claim) not in places and not (holder and _is_current(holder, pin.claim)):
                yield Difference(Kind.LEAKED_PIN, pin.host, pin.claim, pin.instance_id, about)
    if group.policy in ("affinity", "anti-affinity"):
        yield from _broken(group, {place[0]: set() for place in mine} | _by_host(mine))


def _is_current(holder: Holder, claim: str) -> bool:
    action = holder.action
    return action is not None and step_id(action.id, action.step.seq) == claim


def _by_host(mine: Mapping[Place, Allocation]) -> dict[str, set[str]]:
    members: dict[str, set[str]] = {}
    for (host, _), one in mine.items():
        members.setdefault(host, set()).add(one.instance_id)
    return members


def _broken(group: ServerGroup, members: Mapping[str, set[str]]) -> Iterator[Difference]:
    """One member alone may have places on two hosts (it moves); two members may not be apart, or too close."""
    everyone = set().union(*members.values()) if members else set()
    for host, here in members.items():
        is_apart = group.policy == "affinity" and len(everyone) > 1 and here != everyone
        is_close = group.policy == "anti-affinity" and len(here) > group.max_server_per_host
        if is_apart or is_close:
            yield Difference(Kind.GROUP_BROKEN, host, facts={"group": group.id, "members": sorted(here)})


def _amounts(of: Allocation | Resources) -> dict[str, float]:
    return {kind: getattr(of, kind) for kind in KINDS}


def confirmed(first: Iterable[Difference], second: Iterable[Difference]) -> list[Difference]:
    """The differences of the second look that the first one saw too."""
    seen = {one.key for one in first}
    return [one for one in second if one.key in seen]
