"""What placement knows of every host, as NumPy columns: one row per host, one array per fact.

Filters and weighers work on whole columns, so a decision makes no object per host. `free_*` is what the database said
last; `room_*` is that less what this process has claimed and not yet seen confirmed, and is what decisions look at.
Sizes are in the unit their name says. Rows move when a host goes: keep names, not row numbers.
"""

import random
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from virtfleet_common.records import Aggregate
from virtfleet_common.states import HostState
from virtfleet_common.store.host_feed import HostChange

from virtfleet_scheduler.aggregates import AggregateRows, rows_of, zones_of
from virtfleet_scheduler.failures import Failures

Bools = NDArray[np.bool_]
Numbers = NDArray[np.float64]
Codes = NDArray[np.int32]
Rows = NDArray[np.intp]

KINDS = ("vcpus", "ram_mb", "disk_gb")
_NUMBERS = (
    *(f"{part}_{kind}" for part in ("free", "held", "room", "limits", "total") for kind in KINDS),
    "placed", "io_ops", "hypervisor_version", "failures", "tie",
)  # fmt: skip
_TEXTS = ("state", "own_zone", "zone", "arch", "hypervisor_type", "hypervisor_hostname", "host_ip")
_TRUTHS = ("is_enabled", "is_responsive")
_TIE = 1e-9
"""What sets hosts of equal weight apart: less than any weigher says, and another one in each scheduler."""
_TEXT_PATHS = {"state": "state", "availability_zone": "own_zone"} | {name: name for name in _TEXTS[3:]}
_NUMBER_PATHS = {f"{part}.{kind}": f"{part}_{kind}" for part in ("free", "limits", "total") for kind in KINDS} | {
    "placed": "placed",
    "hypervisor_version": "hypervisor_version",
}


class Words:
    """Texts as numbers, so that a column of them can be compared as a whole."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self.texts: list[str] = []

    def code(self, text: str) -> int:
        """The number of a text, given when it is first seen."""
        code = self._codes.get(text)
        if code is None:
            code = self._codes[text] = len(self.texts)
            self.texts.append(text)
        return code

    def find(self, text: str) -> int:
        """The number of a text; -1 if no host ever had it."""
        return self._codes.get(text, -1)


class HostColumns:
    """See the module's text. Every array attribute has one entry per host, in the order of `names`."""

    free_vcpus: Numbers
    free_ram_mb: Numbers
    free_disk_gb: Numbers
    held_vcpus: Numbers
    held_ram_mb: Numbers
    held_disk_gb: Numbers
    room_vcpus: Numbers
    room_ram_mb: Numbers
    room_disk_gb: Numbers
    limits_vcpus: Numbers
    limits_ram_mb: Numbers
    limits_disk_gb: Numbers
    total_vcpus: Numbers
    total_ram_mb: Numbers
    total_disk_gb: Numbers
    placed: Numbers
    io_ops: Numbers
    hypervisor_version: Numbers
    failures: Numbers
    tie: Numbers
    state: Codes
    own_zone: Codes
    zone: Codes
    arch: Codes
    hypervisor_type: Codes
    hypervisor_hostname: Codes
    host_ip: Codes
    is_enabled: Bools
    is_responsive: Bools

    def __init__(self, *, failure_half_life: float = 600.0, seed: int | None = None) -> None:
        self.names: list[str] = []
        self.row_of: dict[str, int] = {}
        self.words = Words()
        self.up = self.words.code(HostState.UP)
        self._arrays: dict[str, NDArray[Any]] = {}
        self._random = random.Random(seed)
        self._failures = Failures(failure_half_life)
        self.as_of = datetime.now(UTC)
        self._aggregates: list[Aggregate] = []
        self._aggregate_rows: list[AggregateRows] | None = None
        self._grow(64)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_up(self) -> Bools:
        """Heartbeats arrive, and the hypervisor answers."""
        is_up: Bools = (self.state == self.up) & self.is_responsive
        return is_up

    @property
    def aggregates(self) -> list[AggregateRows]:
        """The aggregates, with the rows of their hosts."""
        if self._aggregate_rows is None:
            self._aggregate_rows = rows_of(self._aggregates, self.row_of)
            self.zone[:] = self.own_zone
            for row, zone in zones_of(self._aggregate_rows).items():
                self.zone[row] = self.words.code(zone)
        return self._aggregate_rows

    @property
    def zones(self) -> Codes:
        """The availability zone of each host: its aggregate's, else its own."""
        return self.zone if self.aggregates is not None else self.own_zone

    def replace_all(self, changes: Iterable[HostChange]) -> None:
        """These are all the hosts there are. What this process holds of them stays held."""
        self._failures.begin_anew()
        told = {change.host: change.fields for change in changes if change.fields is not None}
        for host in [name for name in self.names if name not in told]:
            self._remove(host)
        self._add(host for host in told if host not in self.row_of)
        for host, fields in told.items():
            self._write(self.row_of[host], fields)

    def apply(self, changes: Iterable[HostChange]) -> None:
        """Some hosts changed, came or went."""
        for change in changes:
            if change.fields is None:
                self._remove(change.host)
                continue
            if change.host not in self.row_of:
                if "state" not in change.fields:
                    continue  # a change of a host that was deleted since
                self._add([change.host])
            self._write(self.row_of[change.host], change.fields)

    def set_aggregates(self, aggregates: Iterable[Aggregate]) -> None:
        """These are all the aggregates there are."""
        self._aggregates = list(aggregates)
        self._aggregate_rows = None

    def set_io_ops(self, counts: Mapping[str, int]) -> None:
        """How many guests are being built or moved, per host; none where nothing is said."""
        self.io_ops[:] = 0
        for host, count in counts.items():
            if host in self.row_of:
                self.io_ops[self.row_of[host]] = count

    def failure_factor(self) -> float:
        """What `failures` is to be multiplied with to be as of `as_of`, which whoever decides sets to now."""
        return self._failures.now_factor(self.as_of)

    def hold(self, host: str, vcpus: float, ram_mb: float, disk_gb: float, *, times: int = 1) -> None:
        """This process is about to claim so much of a host; `times` -1: the claim is confirmed or was refused."""
        row = self.row_of.get(host)
        if row is None:
            return
        for kind, amount in zip(KINDS, (vcpus, ram_mb, disk_gb), strict=True):
            held = self._arrays[f"held_{kind}"]
            held[row] += amount * times
            self._arrays[f"room_{kind}"][row] = self._arrays[f"free_{kind}"][row] - held[row]

    def note_claimed(self, host: str, vcpus: float, ram_mb: float, disk_gb: float) -> None:
        """A claim of this process is confirmed: it counts at once, before the database tells of it."""
        row = self.row_of.get(host)
        if row is None:
            return
        for kind, amount in zip(KINDS, (vcpus, ram_mb, disk_gb), strict=True):
            self._arrays[f"free_{kind}"][row] -= amount
            self._arrays[f"room_{kind}"][row] -= amount
        self.placed[row] += 1
        self.io_ops[row] += 1

    def facts(self, row: int) -> dict[str, str]:
        """The texts of one host, for explanations."""
        return {name: self.words.texts[self._arrays[name][row]] for name in _TEXTS}

    def copy(self) -> "HostColumns":
        """A copy to try things out on."""
        twin = HostColumns(failure_half_life=self._failures.half_life)
        twin.names, twin.row_of, twin.words = list(self.names), dict(self.row_of), self.words
        twin._arrays = {name: array.copy() for name, array in self._arrays.items()}
        twin._show()
        twin.set_aggregates(self._aggregates)
        return twin

    def _write(self, row: int, fields: Mapping[str, Any]) -> None:
        for path, value in fields.items():
            if (number := _NUMBER_PATHS.get(path)) is not None:
                self._arrays[number][row] = value
                if path.startswith("free."):
                    kind = path[5:]
                    self._arrays[f"room_{kind}"][row] = value - self._arrays[f"held_{kind}"][row]
            elif path in _TRUTHS:
                self._arrays[path][row] = value
            elif (text := _TEXT_PATHS.get(path)) is not None:
                self._arrays[text][row] = self.words.code(value)
                if text == "own_zone":
                    self._aggregate_rows = None
            elif path == "failures":
                self.failures[row] = self._failures.weight(value)

    def _add(self, hosts: Iterable[str]) -> None:
        for host in hosts:
            row = self.row_of[host] = len(self.names)
            self.names.append(host)
            if row >= len(self._arrays["tie"]):
                self._grow(2 * row)
            for array in self._arrays.values():
                array[row] = 0
            self._arrays["tie"][row] = self._random.random() * _TIE
        self._show()

    def _remove(self, host: str) -> None:
        """Take a host out: the last row takes its place."""
        row = self.row_of.pop(host, None)
        if row is None:
            return
        last = self.names.pop()
        if last != host:
            self.names[row], self.row_of[last] = last, row
            for array in self._arrays.values():
                array[row] = array[len(self.names)]
        self._show()

    def _grow(self, size: int) -> None:
        kinds: dict[str, type] = dict.fromkeys(_NUMBERS, np.float64)
        kinds |= dict.fromkeys(_TEXTS, np.int32) | dict.fromkeys(_TRUTHS, np.bool_)
        for name, kind in kinds.items():
            wider: NDArray[Any] = np.zeros(size, dtype=kind)
            if name in self._arrays:
                wider[: len(self._arrays[name])] = self._arrays[name]
            self._arrays[name] = wider
        self._show()

    def _show(self) -> None:
        """Give the arrays, cut to the rows in use, as attributes."""
        self._aggregate_rows = None
        for name, array in self._arrays.items():
            setattr(self, name, array[: len(self.names)])
