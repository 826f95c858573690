"""What the agent tells of its host: a heartbeat with the complete listing, and each change at once."""

from itertools import count
from typing import Any

import structlog
from virtfleet_common.bus import EVENTS, Bus, Outgoing
from virtfleet_common.errors import Faulty
from virtfleet_common.executor import StepExecutor
from virtfleet_common.messages import GuestReport, Heartbeat, PowerDelta
from virtfleet_common.ports import Clock, Guest, GuestEvent, Hypervisor
from virtfleet_common.records import Instance
from virtfleet_common.states import PowerState, VmState

log = structlog.get_logger()


class Reporter:
    """Reports of one boot of the agent, numbered before they look, so that an old one is known as old.

    The end of a step takes a number too (`stamp`): a listing that was begun before it cannot speak against it.
    """

    def __init__(self, host: str, boot: str, hypervisor: Hypervisor, bus: Bus, clock: Clock) -> None:
        self._host = host
        self._boot = boot
        self._hypervisor = hypervisor
        self._bus = bus
        self._clock = clock
        self._sequence = count(1)
        self._is_settled = False
        self._held_back: dict[str, PowerState] = {}
        self._told: dict[str, PowerState] = {}

    def settle(self, is_in_order: bool = True) -> None:
        """While the host is in order, what is seen of its guests is told; what it does to them until then, or to give
        itself up, is nobody's wish."""
        self._is_settled = is_in_order

    async def beat(self) -> None:
        """Publish a heartbeat. A listing that fails is said to have failed: it proves nothing; nor does one of a host
        that is still putting itself in order."""
        sequence = next(self._sequence)
        guests, error = await self._listing()
        heartbeat = Heartbeat(
            host=self._host,
            boot_id=self._boot,
            sequence=sequence,
            sent_at=self._clock.now(),
            is_responsive=self._hypervisor.is_responsive,
            guests=guests,
            listing_error=error,
        )
        await self._publish("heartbeat", heartbeat)

    async def _listing(self) -> tuple[list[GuestReport] | None, str | None]:
        """The guests, or why nobody can tell."""
        if self._is_settled:
            try:
                guests = [_report(guest) for guest in await self._hypervisor.list_guests() if guest.is_ours]
            except Faulty as fault:
                return None, fault.message
            if self._is_settled:  # it may have given itself up while it looked
                return guests, None
        return None, "the host is returning"

    async def follow(self, executor: StepExecutor) -> None:
        """Publish each lifecycle change as libvirt reports it, for ever.

        The changes that a step of ours makes are its own to record: what is left when it ended is told by `after`.
        """
        async for event in self._hypervisor.events():
            if executor.is_at_work(event.instance_id):
                self._held_back[event.instance_id] = event.power_state
            else:
                await self._tell(event)

    async def after(self, instance: Instance) -> None:
        """A step of ours on this instance ended: tell what the guest did since, if the record does not say so."""
        last = self._held_back.pop(instance.id, None)
        if instance.vm_state is VmState.DELETED:
            self._told.pop(instance.id, None)
            return
        self._told[instance.id] = instance.power_state.shown
        if last is not None:
            await self._tell(GuestEvent(instance.id, last))

    def stamp(self) -> dict[str, Any]:
        """The field by which `power_sync` knows what a step recorded from what was reported before."""
        return {"power_seen": {"boot": self._boot, "sequence": next(self._sequence)}}

    async def _tell(self, event: GuestEvent) -> None:
        """Look at the guest, for the event may be an old one; publish what is news since the last time."""
        if not self._is_settled or event.power_state.shown == self._told.get(event.instance_id):
            return
        sequence = next(self._sequence)
        try:
            guest = await self._hypervisor.observe(event.instance_id)
        except Faulty as error:
            log.warning("delta.not_observed", instance_id=event.instance_id, error=error.message)
            return
        if guest is None or not guest.is_ours:
            self._told.pop(event.instance_id, None)
            return  # a guest that is gone is found missing by the listings
        if guest.power_state.shown == self._told.get(event.instance_id):
            return
        if not self._is_settled:
            return  # given up while it was looked at
        self._told[event.instance_id] = guest.power_state.shown
        delta = PowerDelta(host=self._host, boot_id=self._boot, sequence=sequence, guest=_report(guest))
        await self._publish("delta", delta)

    async def _publish(self, word: str, data: Heartbeat | PowerDelta) -> None:
        message = Outgoing(
            EVENTS, f"host.{self._host}.{word}", f"virtfleet.host.{word}", data, f"virtfleet/compute/{self._host}"
        )
        try:
            await self._bus.publish(message)
        except Faulty as error:
            log.warning("report.not_sent", word=word, error=error.message)


def _report(guest: Guest) -> GuestReport:
    return GuestReport(instance_id=guest.instance_id, power_state=guest.power_state, epoch=guest.epoch)
