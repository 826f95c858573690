"""Extra specs of the flavor: against aggregates' metadata, and against what hosts are.

A key without a scope asks for a capability where hosts have one of that name, and for an aggregate otherwise, so that
both filters can be on at once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from virtfleet_scheduler.aggregates import allowed
from virtfleet_scheduler.columns import Bools, HostColumns
from virtfleet_scheduler.operators import matches
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain

_NUMBERS = {
    "vcpus_total": "total_vcpus", "total_usable_ram_mb": "total_ram_mb", "total_usable_disk_gb": "total_disk_gb",
    "free_ram_mb": "room_ram_mb", "free_disk_gb": "room_disk_gb", "hypervisor_version": "hypervisor_version",
    "num_instances": "placed", "num_io_ops": "io_ops",
}  # fmt: skip
_TEXTS = ("hypervisor_type", "hypervisor_hostname", "host_ip", "arch")
_CAPABILITIES = "capabilities"
_AGGREGATES = "aggregate_instance_extra_specs"


def _asked(request: Request, scope: str, is_mine: Callable[[str], bool]) -> dict[str, str]:
    """The extra specs of a scope, without it, and those without any scope that are `is_mine`."""
    found: dict[str, str] = {}
    for key, value in request.extra_specs.items():
        head, colon, rest = key.partition(":")
        if colon and head == scope:
            found[rest] = value
        elif not colon and is_mine(key):
            found[key] = value
    return found


def _is_capability(key: str) -> bool:
    return key in _NUMBERS or key in _TEXTS


class AggregateSpecs(Plain):
    """Every extra spec `aggregate_instance_extra_specs:<key>` is matched by an aggregate of the host."""

    code = "no_aggregate_matches"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """In aggregates that have every key, and match it."""
        passing: Bools | None = None
        for key, wanted in self._wanted(request).items():
            _, has_match = allowed(len(hosts), hosts.aggregates, key, _any_value_of(key, wanted))
            passing = has_match if passing is None else passing & has_match
        return passing

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """What is wanted, and what the host's aggregates say of it."""
        wanted = self._wanted(request)
        has = {one.name: dict(one.metadata) for one in hosts.aggregates if row in one.rows}
        return {"wanted": wanted, "aggregates": has}

    @staticmethod
    def _wanted(request: Request) -> dict[str, str]:
        return _asked(request, _AGGREGATES, lambda key: not _is_capability(key)) if request.extra_specs else {}


class Capabilities(Plain):
    """Every extra spec `capabilities:<key>` is matched by the host; a key that hosts do not have matches none."""

    code = "capability_missing"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """All asked for are there."""
        passing: Bools | None = None
        for key, wanted in self._wanted(request).items():
            has = self._having(hosts, key, wanted)
            passing = has if passing is None else passing & has
        return passing

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """What is wanted, and what the host has."""
        wanted = self._wanted(request)
        texts = hosts.facts(row)
        numbers = {key: float(getattr(hosts, _NUMBERS[key])[row]) for key in wanted if key in _NUMBERS}
        return {"wanted": wanted, "has": {**numbers, **{key: texts[key] for key in wanted if key in _TEXTS}}}

    @staticmethod
    def _wanted(request: Request) -> dict[str, str]:
        return _asked(request, _CAPABILITIES, _is_capability) if request.extra_specs else {}

    @staticmethod
    def _having(hosts: HostColumns, key: str, wanted: str) -> Bools:
        """Each different value is looked at once, however many hosts have it."""
        if not _is_capability(key):
            return np.zeros(len(hosts), dtype=np.bool_)
        values, places = np.unique(getattr(hosts, _NUMBERS.get(key, key)), return_inverse=True)
        texts = (f"{value:g}" if key in _NUMBERS else hosts.words.texts[int(value)] for value in values)
        found: Bools = np.array([matches(text, wanted) for text in texts], dtype=np.bool_)[places]
        return found


def _any_value_of(key: str, wanted: str) -> Any:
    return lambda one: any(matches(value, wanted) for value in one.values(key))
