"""How much past failures weigh: each counts one when it happens, and half after every half-life."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

_HALVES_KEPT = 60.0


class Failures:
    """Weights as of one moment for all hosts, so that a column of them needs no update as time goes by.

    All weights shrink at the same pace; `now_factor` turns a stored weight into today's.
    """

    def __init__(self, half_life: float) -> None:
        self.half_life = half_life
        self._base = datetime.now(UTC)

    def begin_anew(self) -> None:
        """Weights are as of now; those given before are to be forgotten."""
        self._base = datetime.now(UTC)

    def weight(self, failures: Iterable[Mapping[str, Any]]) -> float:
        """The weight of a host's failures (each with its time `at`), as of the base time."""
        return float(sum(2.0 ** max(min(self._halves(one["at"]), _HALVES_KEPT), -_HALVES_KEPT) for one in failures))

    def now_factor(self, now: datetime) -> float:
        """What a stored weight is to be multiplied with to be as of `now`."""
        factor: float = 2.0 ** -max(self._halves(now), 0.0)
        return factor

    def _halves(self, at: datetime) -> float:
        return (at - self._base).total_seconds() / self.half_life
