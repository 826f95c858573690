"""The host comes back: what it must not run goes, before it takes work; and then what it should run, runs.

Good path: guests that live elsewhere by now are stopped, what is owed is cleaned up, the host registers, and guests
that the record says are running are started if the machine was off. Bad path: an evacuation is under way; then its
guest is stopped and kept, and the host stays outside until that is decided. Why it is safe: nothing is destroyed but
what the record of this very host says is elsewhere, with an epoch above the guest's own; a listing or a record that
cannot be read stops the return, not the guests; and once the host is registered no new evacuation can begin, for
whoever read an instance before loses the compare-and-set.
"""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
from virtfleet_common.errors import Faulty, LostOwnership
from virtfleet_common.failpoints import reach
from virtfleet_common.ports import Guest, Hypervisor
from virtfleet_common.records import Host, Instance
from virtfleet_common.settings import AgentSettings
from virtfleet_common.store import Store
from virtfleet_common.store.guard import answered

from virtfleet_compute_agent.cleanups import Cleaner
from virtfleet_compute_agent.resume import Deed, deed, is_to_be_started

log = structlog.get_logger()


class Returning:
    """The return of one host, from its first look at its guests to the start of those that should run."""

    def __init__(
        self, host: str, store: Store, hypervisor: Hypervisor, cleaner: Cleaner, settings: AgentSettings
    ) -> None:
        self._host = host
        self._store = store
        self._hypervisor = hypervisor
        self._cleaner = cleaner
        self._settings = settings
        self._power = PowerLog(settings.state_dir, settings.machine_boot_file)
        self._one_at_a_time = asyncio.Lock()

    async def sort_out(self) -> None:
        """Stop every guest that this host must not run, and do what it owes. Raises Faulty when it cannot be told."""
        async with self._one_at_a_time:
            guests = {guest.instance_id: guest for guest in await self._hypervisor.list_guests() if guest.is_ours}
            records = {instance.id: instance for instance in await self._store.instances.find_ids(guests)}
            for id_, guest in guests.items():
                await self._do(deed(self._host, records.get(id_), guest), guest)
            await self._cleaner.clean_all()

    async def why_kept_out(self) -> str | None:
        """What keeps this host outside: an admin, or an evacuation that is not decided yet; None: nothing."""
        known = await self._store.hosts.get_brief(self._host)
        if known is not None and known.is_forced_down:
            return "it is forced down"
        if known is not None and _is_being_fenced(known):
            return "it is being fenced"
        evacuating = await self._store.instances.find_evacuating(self._host)
        return f"{len(evacuating)} of its guests are being evacuated" if evacuating else None

    async def take_back(self) -> bool:
        """The host is registered: from now on its guests are its own. False if an evacuation was quicker."""
        await self._store.instances.touch_on_host(self._host)
        reach("return.registered")
        await self.sort_out()
        return not await self._store.instances.find_evacuating(self._host)

    async def start_guests(self, boot: str) -> None:
        """Start what the record says is running, if the machine was off meanwhile, or guests were switched off to give
        them up; as long as the host is registered as `boot`. What fails is reported as it is."""
        if self._power.was_off():
            await self._start_all(await self._due(), boot)
        self._power.note_on()

    async def _due(self) -> list[Instance]:
        guests = {guest.instance_id: guest for guest in await self._hypervisor.list_guests()}
        recorded = await self._store.instances.find_on_host(self._host)
        return [one for one in recorded if is_to_be_started(self._host, one, guests.get(one.id))]

    async def power_off(self) -> None:
        """Switch every guest off, as by a reboot: those that still belong here are started when the host is back.
        Raises Faulty if one may run on."""
        self._power.note_off()
        running = [one for one in await self._hypervisor.list_guests() if one.is_ours and one.power_state.is_on]
        results = await asyncio.gather(
            *(self._hypervisor.destroy(one.instance_id) for one in running), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        log.warning("guests.powered_off", host=self._host, guests=len(running), failed=len(failed))
        if failed:
            raise Faulty(f"{len(failed)} of {len(running)} guests could not be powered off: {failed[0]}")

    async def _start_all(self, due: Iterable[Instance], boot: str) -> None:
        room = asyncio.Semaphore(self._settings.start_parallelism)
        async with asyncio.TaskGroup() as group:
            for instance in due:
                group.create_task(self._start(instance, boot, room))

    async def _start(self, instance: Instance, boot: str, room: asyncio.Semaphore) -> None:
        async with room:
            try:
                await self._hypervisor.create_disk(instance)
                await self._hypervisor.define(instance)
                await answered(partial(self._prove, instance, boot))
                await self._hypervisor.start(instance.id)
            except Faulty as error:
                log.warning("guest.not_started", instance_id=instance.id, error=error.message)
            else:
                log.info("guest.started", instance_id=instance.id, why="it was off")

    async def _prove(self, instance: Instance, boot: str) -> None:
        """Look into the record again: an agent that stood still does not know what it lost meanwhile. The host comes
        last, for it is lost before its guests are. Raises LostOwnership, StoreUnavailable."""
        now = await self._store.instances.get(instance.id)
        is_due = now is not None and now.epoch == instance.epoch and is_to_be_started(self._host, now, None)
        known = await self._store.hosts.get_brief(self._host)
        if not is_due or known is None or known.boot_id != boot:
            raise LostOwnership("it is not to be started here any more", instance_id=instance.id)

    async def _do(self, what: Deed, guest: Guest) -> None:
        match what:
            case Deed.STOP | Deed.FORGET:
                seen = await self._hypervisor.observe(guest.instance_id)
                if seen is None or seen.epoch != guest.epoch:
                    return  # it went, or came here anew, since it was listed
                if what is Deed.STOP and seen.power_state.is_on:
                    self._power.note_off()  # it may stay this host's after all, and is started then
                await self._hypervisor.destroy(guest.instance_id)
                if what is Deed.FORGET:
                    await self._hypervisor.undefine(guest.instance_id)
                log.warning("guest.stale", instance_id=guest.instance_id, epoch=guest.epoch, done=what)
            case Deed.REPORT:
                log.warning("guest.unknown", instance_id=guest.instance_id, power_state=guest.power_state)


def _is_being_fenced(host: Host) -> bool:
    """Whether somebody is switching this host off: what it started now would not live."""
    return host.fencing is not None and host.fencing.by is not None and host.fencing.until > datetime.now(UTC)


class PowerLog:
    """Whether the guests ran all the time since they were seen to, for all that the machine and the agent have done to
    them: kept in the state directory."""

    def __init__(self, state_dir: Path, boot_file: Path) -> None:
        self._known = state_dir / "last_boot"
        self._boot_file = boot_file

    def was_off(self) -> bool:
        """Whether this is another boot than the one noted last, or guests were switched off in this one; False where
        nothing was noted yet."""
        return self._known.exists() and self._known.read_text() != self._boot()

    def note_on(self) -> None:
        """This boot's guests are seen to."""
        part = self._known.with_suffix(".part")
        part.write_text(self._boot())
        part.rename(self._known)

    def note_off(self) -> None:
        """Guests of this boot were switched off, and by no wish of their owners."""
        self._known.write_text("off")

    def _boot(self) -> str:
        return self._boot_file.read_text().strip()
