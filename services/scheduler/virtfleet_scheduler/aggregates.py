"""Aggregates as placement uses them: which rows they hold, and which hosts their metadata restricts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from virtfleet_common.records import Aggregate

ZONE = "availability_zone"


@dataclass(frozen=True, slots=True)
class AggregateRows:
    """One aggregate: its metadata, and the rows of its hosts that are known."""

    name: str
    metadata: Mapping[str, str]
    rows: NDArray[np.intp]

    def values(self, key: str) -> set[str]:
        """The values of a metadata key, which may list several separated by commas."""
        return {value.strip() for value in self.metadata[key].split(",")}


def rows_of(aggregates: Iterable[Aggregate], row_of: Mapping[str, int]) -> list[AggregateRows]:
    """The aggregates on the rows that their hosts have."""
    return [
        AggregateRows(
            one.name, one.metadata, np.array([row_of[host] for host in one.hosts if host in row_of], dtype=np.intp)
        )
        for one in aggregates
    ]


def zones_of(aggregates: Iterable[AggregateRows]) -> dict[int, str]:
    """The zone of each row that an aggregate puts into one."""
    return {int(row): one.metadata[ZONE] for one in aggregates if ZONE in one.metadata for row in one.rows}


def allowed(
    size: int, aggregates: Iterable[AggregateRows], key: str, is_match: Callable[[AggregateRows], bool]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per row: whether an aggregate of the host has `key`, and whether one that has it matches."""
    has_key, has_match = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    for one in aggregates:
        if key in one.metadata:
            has_key[one.rows] = True
            if is_match(one):
                has_match[one.rows] = True
    return has_key, has_match
