"""Guests on a host that the record does not place there: each is told of once for each boot of the host's agent.

An orphan has no record at all, and is never touched. A copy's instance lives on another host, where the record places
it; a leftover is what a deleted instance left: the host is asked to look after these until they are gone.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import structlog
from virtfleet_common import telemetry
from virtfleet_common.bus import COMMANDS, EVENTS, Bus, Outgoing
from virtfleet_common.errors import Faulty
from virtfleet_common.messages import DoCleanups, GuestReport, Heartbeat, OrphanFound, PowerDelta
from virtfleet_common.records import Instance
from virtfleet_common.states import VmState

log = structlog.get_logger()
_NAMESPACE = UUID("5c2b6a52-0f7e-4f0c-8f0a-3f6f2a0f9d11")
_ORPHAN = "orphan"
_SOURCE = "virtfleet/power-sync"


@dataclass(slots=True)
class _OnHost:
    """What is there now, and which orphans were told of since the boot."""

    boot: str
    kinds: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)


class Strangers:
    """What is known of them, by host; a new boot of the agent begins anew."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._hosts: dict[str, _OnHost] = {}

    def knows(self, report: Heartbeat | PowerDelta, guest_id: str) -> bool:
        """Whether this guest was told of since the agent's boot, and nothing more is to be done about it."""
        return self._on(report).kinds.get(guest_id) == _ORPHAN

    async def note(self, report: Heartbeat | PowerDelta, guest: GuestReport, instance: Instance | None) -> None:
        """Tell of a guest, by the record of its id; what could not be told is told with the next report."""
        kind, id_, on_host = _kind(instance), guest.instance_id, self._on(report)
        if kind != _ORPHAN:
            await self._is_asked(report.host)
        if on_host.kinds.get(id_) == kind:
            return
        if kind == _ORPHAN and id_ not in on_host.told:
            if not await self._is_published(report, guest):
                return
            on_host.told.add(id_)
        on_host.kinds[id_] = kind
        facts: dict[str, Any] = {"power_state": guest.power_state, "epoch": guest.epoch}
        if instance is not None:
            facts |= {"recorded_host": instance.host, "task_state": instance.task_state}
        log.warning(f"guest.{kind}", host=report.host, instance_id=id_, **facts)
        self._measure()

    def keep(self, report: Heartbeat, strange: Collection[str]) -> None:
        """A complete listing: whoever is not among the `strange` any more is gone, or has a record here."""
        kinds = self._on(report).kinds
        gone = kinds.keys() - strange
        for guest_id in gone:
            del kinds[guest_id]
        if gone:
            self._measure()

    def _on(self, report: Heartbeat | PowerDelta) -> _OnHost:
        known = self._hosts.get(report.host)
        if known is None or known.boot != report.boot_id:
            known = self._hosts[report.host] = _OnHost(report.boot_id)
        return known

    async def _is_published(self, report: Heartbeat | PowerDelta, guest: GuestReport) -> bool:
        """The event's id is made of what it tells, so that the copy of another replica can be told."""
        id_ = uuid5(_NAMESPACE, f"{report.host} {report.boot_id} {guest.instance_id}").hex
        found = OrphanFound(host=report.host, boot_id=report.boot_id, guest=guest)
        return await self._sent(
            Outgoing(
                EVENTS, f"host.{report.host}.{_ORPHAN}", f"virtfleet.host.{_ORPHAN}", found, _SOURCE,
                id=id_, subject=guest.instance_id,
            )
        )  # fmt: skip

    async def _is_asked(self, host: str) -> bool:
        """Have the host stop what must not run there, and clean up what it owes."""
        return await self._sent(
            Outgoing(COMMANDS, f"cleanup.{host}", "virtfleet.cleanup", DoCleanups(host=host), _SOURCE)
        )

    async def _sent(self, message: Outgoing) -> bool:
        try:
            await self._bus.publish(message)
        except Faulty as error:
            log.warning("publish.failed", key=message.key, error=error.message)
            return False
        return True

    def _measure(self) -> None:
        kinds = (kind for on_host in self._hosts.values() for kind in on_host.kinds.values())
        telemetry.ORPHANS.set(sum(kind == _ORPHAN for kind in kinds))


def _kind(instance: Instance | None) -> str:
    if instance is None:
        return _ORPHAN
    return "leftover" if instance.vm_state is VmState.DELETED else "copy"
