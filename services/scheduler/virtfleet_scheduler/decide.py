"""Placement without I/O: which hosts can take a guest, which of them best, and why not the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from virtfleet_common.records import Host
from virtfleet_common.states import HostState

_SAMPLE = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be placed. `excluded` hosts were tried and failed."""

    vcpus: int
    ram_mb: int
    disk_gb: int
    excluded: frozenset[str] = frozenset()
    availability_zone: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The hosts that can take the guest, best first, and per filter what it refused."""

    hosts: Sequence[str]
    weights: Mapping[str, float] = field(default_factory=dict)
    refused: Sequence[Mapping[str, Any]] = ()
    considered: int = 0

    def explanation(self) -> dict[str, Any]:
        """This decision as the action records it and people read it."""
        best = {host: round(self.weights[host], 4) for host in self.hosts[:_SAMPLE]}
        return {"considered": self.considered, "refused": list(self.refused), "best": best}


Filter = Callable[[Host, Request], Mapping[str, Any] | None]
"""None: the host passes; otherwise the numbers that say why it does not."""


def _is_up(host: Host, request: Request) -> Mapping[str, Any] | None:
    is_up = host.state is HostState.UP and host.is_responsive
    return None if is_up else {"state": host.state, "is_responsive": host.is_responsive}


def _is_enabled(host: Host, request: Request) -> Mapping[str, Any] | None:
    return None if host.is_enabled else {"disabled_reason": host.disabled_reason}


def _is_not_excluded(host: Host, request: Request) -> Mapping[str, Any] | None:
    return {"tried": True} if host.id in request.excluded else None


def _is_in_zone(host: Host, request: Request) -> Mapping[str, Any] | None:
    if request.availability_zone in (None, host.availability_zone):
        return None
    return {"zone": host.availability_zone, "wanted": request.availability_zone}


def _room(kind: str) -> Filter:
    def has_room(host: Host, request: Request) -> Mapping[str, Any] | None:
        needed, free = getattr(request, kind), getattr(host.free, kind)
        return None if free >= needed else {"needed": needed, "free": free}

    return has_room


FILTERS: Mapping[str, Filter] = {
    "host_not_up": _is_up,
    "host_disabled": _is_enabled,
    "host_tried_before": _is_not_excluded,
    "zone_differs": _is_in_zone,
    "not_enough_vcpus": _room("vcpus"),
    "not_enough_ram": _room("ram_mb"),
    "not_enough_disk": _room("disk_gb"),
}


def decide(hosts: Sequence[Host], request: Request) -> Decision:
    """Filter, then weigh by free RAM (min-max normalised, as Nova's RAM weigher); ties by name."""
    left, refused = list(hosts), []
    for code, check in FILTERS.items():
        outcomes = [(host, check(host, request)) for host in left]
        left = [host for host, why in outcomes if why is None]
        out = [(host.id, dict(why)) for host, why in outcomes if why is not None]
        if out:
            sample = [{"host": host, **why} for host, why in out[:_SAMPLE]]
            refused.append({"filter": code, "count": len(out), "sample": sample})
    weights = _normalised({host.id: max(host.free.ram_mb, 0) for host in left})
    best = sorted(weights, key=lambda host: (-weights[host], host))
    return Decision(best, weights, refused, len(hosts))


def _normalised(raw: Mapping[str, float]) -> dict[str, float]:
    largest = max(raw.values(), default=0)
    return {host: value / largest if largest else 0.0 for host, value in raw.items()}
