"""The audit of claims: reads the books, compares them twice, mends what is leaked and reports the rest.

Why it is safe beside work in flight: a difference counts only if two looks, some seconds apart, both see it; and a
claim is called leaked only if no write that could still succeed would make it held (see `audit.py`). What is given back
is named by host and claim, so that the mending cannot hit another one.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from virtfleet_common import telemetry
from virtfleet_common.audit import Books, Difference, Kind, compare, confirmed
from virtfleet_common.records import Holder, Host
from virtfleet_common.settings import CommonSettings
from virtfleet_common.store import Store

log = structlog.get_logger()
_PAGE = 100
_LOGGED = 50
_MENDED = frozenset({Kind.LEAKED_CLAIM, Kind.LEAKED_PIN})


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was looked at, and what is wrong; of that, what was mended."""

    hosts: int
    allocations: int
    instances: int
    differences: Sequence[Difference] = ()
    mended: Sequence[Difference] = ()

    @property
    def is_clean(self) -> bool:
        """Whether allocations = instances + open moves + clean-ups, and no group's rule is broken."""
        return not self.differences


async def audit(store: Store, *, grace: float = 5.0, is_mending: bool = True) -> AuditReport:
    """Audit every host. `grace`: seconds between the two looks, taken only if the first one sees anything.

    Raises StoreUnavailable.
    """
    books = await _read(store)
    differences = await asyncio.to_thread(compare, books)
    if differences:
        await asyncio.sleep(grace)
        books = await _read(store)
        differences = confirmed(differences, await asyncio.to_thread(compare, books))
    mended = [one for one in differences if is_mending and await _mend(store, one)]
    telemetry.AUDIT_DIFFERENCES.set(len(differences))
    _log(differences, mended)
    allocations = sum(len(host.allocations) for host in books.hosts)
    return AuditReport(len(books.hosts), allocations, len(books.holders), differences, mended)


async def audit_database(settings: CommonSettings, *, grace: float, is_mending: bool = True) -> AuditReport:
    """Audit the database that the settings name: what the command does. Raises StoreUnavailable."""
    store = Store.connect(settings)
    try:
        return await audit(store, grace=grace, is_mending=is_mending)
    finally:
        store.close()


def as_lines(report: AuditReport) -> list[str]:
    """The report as people read it, one line for each difference."""
    head = f"{report.hosts} hosts, {report.allocations} allocations, {report.instances} instances: "
    told = [
        f"{one.kind}{' (mended)' if one in report.mended else ''}: host {one.host}, claim {one.claim}, "
        f"instance {one.instance_id}, {dict(one.facts)}"
        for one in report.differences
    ]
    return [head + (f"{len(told)} differences" if told else "they agree"), *told]


def _log(differences: Sequence[Difference], mended: Sequence[Difference]) -> None:
    for one in differences[:_LOGGED]:
        log.warning("audit.difference", kind=one.kind, host=one.host, claim=one.claim, instance_id=one.instance_id,
                    facts=dict(one.facts), is_mended=one in mended)  # fmt: skip
    if len(differences) > _LOGGED:
        log.warning("audit.more_differences", count=len(differences), mended=len(mended))


async def _read(store: Store) -> Books:
    """Hosts first, then instances, then clean-ups. Groups come before hosts: a pin is there before its claim."""
    groups = await store.server_groups.find()
    hosts = await _hosts(store)
    holders = await _holders(store)
    return Books(hosts, holders, await store.cleanups.find(), groups)


async def _hosts(store: Store) -> list[Host]:
    found: list[Host] = []
    while page := await store.hosts.find_page(found[-1].id if found else "", _PAGE):
        found += page
    return found


async def _holders(store: Store) -> list[Holder]:
    found: list[Holder] = []
    while page := await store.instances.find_holders(after=found[-1].id if found else "", limit=_PAGE):
        found += page
    return found


async def _mend(store: Store, one: Difference) -> bool:
    if one.kind not in _MENDED or one.host is None or one.claim is None or one.instance_id is None:
        return False
    if one.kind is Kind.LEAKED_PIN:
        return await store.pins.unpin(one.facts["group"], one.claim, one.host)
    return await store.hosts.release(one.instance_id, one.claim, one.host) > 0
