"""Filters and weighers: what they are, and how those that the settings name are found (entry points)."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from virtfleet_common import plugins
from virtfleet_common.settings import SchedulerSettings

from virtfleet_scheduler.columns import Bools, HostColumns, Numbers, Rows
from virtfleet_scheduler.request import Request


class Filter(Protocol):
    """A rule that hosts keep or break. Made with the settings as its only argument."""

    code: str
    """The constant name of the reason, as explanations show it."""

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """Which hosts keep the rule, as a new array; None: all of them."""
        ...

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """The numbers that say why this host breaks the rule."""
        ...


class Weigher(Protocol):
    """A raw value per host; normalised to 0..1 over the hosts that are left and multiplied by its setting.

    `floor` and `least_ceiling` widen the range that is normalised: with floor 0 the lowest value is not worth nothing
    but what it is, and with least_ceiling 1 values far below 1 stay small.
    """

    name: str
    floor: float | None
    least_ceiling: float | None

    def raw(self, hosts: HostColumns, request: Request, rows: Rows | None) -> Numbers | None:
        """The values of these rows (None: of all); None: this weigher has nothing to say to the request."""
        ...


class Plain:
    """The base of a rule that no setting concerns."""

    def __init__(self, settings: SchedulerSettings) -> None:
        """Nothing to keep."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a decision follows. `keep`: how many of the best hosts it names; `chance` picks among `subset_size`."""

    filters: Sequence[Filter]
    weighers: Sequence[tuple[Weigher, float]]
    subset_size: int = 1
    keep: int = 10
    chance: random.Random | None = None

    @classmethod
    def of(cls, settings: SchedulerSettings) -> "Rules":
        """The rules that the settings name. Raises NoSuchPlugin."""
        return cls(
            [plugins.make("virtfleet.filters", name, settings) for name in settings.filters],
            [
                (plugins.make("virtfleet.weighers", name, settings), times)
                for name, times in settings.weighers.items()
                if times
            ],
            settings.host_subset_size,
            max(10, settings.host_subset_size),
            random.Random(settings.placement_seed),
        )
