"""Placement without I/O: which hosts can take a guest, which of them best, and why not the others.

Filters cut down one array of booleans; weighers add up one array of weights. Objects are made for the few hosts that
an answer names: the best ones, and up to three that each filter refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from virtfleet_scheduler.columns import Bools, HostColumns, Numbers, Rows
from virtfleet_scheduler.filters.named import among
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Filter, Rules, Weigher

SAMPLE = 3
"""Hosts that an explanation names for each filter, and of the best."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The best hosts that can take the guest, best first; what each filter refused; and how the best were weighed.

    `passed` counts all the hosts that can take it, of which `hosts` names the first ones.
    """

    hosts: Sequence[str]
    weights: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    refused: Sequence[Mapping[str, Any]] = ()
    considered: int = 0
    passed: int = 0

    def explanation(self, chosen: str | None = None) -> dict[str, Any]:
        """This decision as the action records it and people read it; `chosen` is the host that took the claim."""
        best = [
            {"host": host, "weight": round(self.weights[host], 4), "parts": dict(self.parts[host])}
            for host in self.hosts[:SAMPLE]
        ]
        return {
            "considered": self.considered,
            "refused": list(self.refused),
            "passed": self.passed,
            "best": best,
            "chosen": chosen,
        }


def decide(hosts: HostColumns, request: Request, rules: Rules) -> Decision:
    """Filter, then weigh. Changes nothing; the same hosts, request, rules and chance give the same decision.

    A forced host is verified, not trusted: it alone is looked at, and every filter may still refuse it.
    """
    left = _looked_at(hosts, request)
    considered = _count(left, hosts)
    refused: list[Mapping[str, Any]] = []
    for rule in rules.filters:
        kept = rule.passes(hosts, request)
        if kept is not None:
            left = _cut(hosts, request, rule, left, kept, refused)
    passed = _count(left, hosts)
    if not passed:
        return Decision((), refused=refused, considered=considered)
    return _weighed(hosts, request, rules, left, Decision((), refused=refused, considered=considered, passed=passed))


def decide_several(hosts: HostColumns, request: Request, rules: Rules, count: int) -> Iterator[Decision]:
    """One decision for each of `count` equal guests; each choice counts for the next, `hosts` stays as it is."""
    imagined = hosts.copy()
    for _ in range(count):
        decision = decide(imagined, request, rules)
        yield decision
        if decision.hosts:
            imagined.note_claimed(decision.hosts[0], request.vcpus, request.ram_mb, request.disk_gb)
            request = request.with_member_on(decision.hosts[0])


def _looked_at(hosts: HostColumns, request: Request) -> Bools | None:
    """None: all hosts."""
    return None if request.forced_host is None else among(hosts, [request.forced_host])


def _count(left: Bools | None, hosts: HostColumns) -> int:
    return len(hosts) if left is None else int(np.count_nonzero(left))


def _cut(
    hosts: HostColumns,
    request: Request,
    rule: Filter,
    left: Bools | None,
    kept: Bools,
    refused: list[Mapping[str, Any]],
) -> Bools | None:
    """What is left after a filter; what it refused of those that were left before is noted, if anything."""
    after = kept if left is None else left & kept
    lost = _count(left, hosts) - int(np.count_nonzero(after))
    if lost == 0:
        return left
    gone = ~kept if left is None else left & ~kept
    sample = [{"host": hosts.names[row], **rule.facts(hosts, request, row)} for row in map(int, _first(gone, SAMPLE))]
    refused.append({"filter": rule.code, "count": lost, "sample": sample})
    return after


def _first(mask: Bools, count: int) -> Rows:
    """The rows of the first true entries; looks at the beginning before it looks at all."""
    found = np.flatnonzero(mask[:256])
    return (found if len(found) >= count else np.flatnonzero(mask))[:count]


def _weighed(hosts: HostColumns, request: Request, rules: Rules, left: Bools | None, so_far: Decision) -> Decision:
    rows = None if left is None or so_far.passed == len(hosts) else np.flatnonzero(left)
    total = hosts.tie.copy() if rows is None else hosts.tie.take(rows)
    scales: list[tuple[str, Numbers, float]] = []
    for weigher, times in rules.weighers:
        raw = weigher.raw(hosts, request, rows)
        if raw is None:
            continue
        above, factor = _scaled(raw, weigher, times)
        if factor:
            total += above * factor
            scales.append((weigher.name, above, factor))
    best = _chosen(_best(total, rules.keep), rules)
    names = [hosts.names[int(place if rows is None else rows[place])] for place in best]
    weights = dict(zip(names, total[best].tolist(), strict=True))
    return replace(so_far, hosts=names, weights=weights, parts=_parts(names, best, scales))


def _scaled(raw: Numbers, weigher: Weigher, times: float) -> tuple[Numbers, float]:
    """How far each value is above the lowest, and what that is to be multiplied with (0: all weigh the same)."""
    low, high = float(raw.min()), float(raw.max())
    if weigher.floor is not None:
        if low < weigher.floor:
            raw = np.maximum(raw, weigher.floor)
        low = weigher.floor
    if weigher.least_ceiling is not None:
        high = max(high, weigher.least_ceiling)
    if high <= low:
        return raw, 0.0
    return (raw - low if low else raw), times / (high - low)


def _best(total: Numbers, keep: int) -> Rows:
    """The places of the highest weights, highest first."""
    if len(total) <= keep:
        return np.argsort(-total)
    top = np.argpartition(total, len(total) - keep)[-keep:]
    return top[np.argsort(-total[top])]


def _chosen(best: Rows, rules: Rules) -> Rows:
    """One of the first `subset_size`, at random, goes to the front."""
    size = min(rules.subset_size, len(best))
    if size > 1 and rules.chance is not None:
        place = rules.chance.randrange(size)
        best = np.concatenate((best[place : place + 1], best[:place], best[place + 1 :]))
    return best


def _parts(
    names: Sequence[str], best: Rows, scales: Sequence[tuple[str, Numbers, float]]
) -> dict[str, dict[str, float]]:
    """What each weigher gave to the first few."""
    first = best[:SAMPLE]
    columns = {name: [round(part, 4) for part in (above[first] * factor).tolist()] for name, above, factor in scales}
    return {host: {name: parts[place] for name, parts in columns.items()} for place, host in enumerate(names[:SAMPLE])}
