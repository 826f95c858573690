"""Has every lost host fenced: each by a task of its own, one attempt at a time in the whole fleet.

Good path: the attempt is leased in the host's document by compare-and-set, the plug-in proves that the host is off, and
the proof is written for this very loss. Bad path: there is no proof; why is written for people and told, and after a
pause it is tried again. Why it is safe: a host that is back has no lease to give (its state is not down), what is under
way for it is given up, and a proof of an earlier loss is not written; a replica that dies leaves a lease that ends.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from virtfleet_common.bus import EVENTS, Bus, Outgoing, try_publish
from virtfleet_common.errors import Faulty, FenceFault
from virtfleet_common.messages import Event, FenceFailed, HostFenced
from virtfleet_common.ports import Clock, Fence
from virtfleet_common.records import FenceProof, Fencing, Host
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Store

from virtfleet_power_sync.limits import within_limit

log = structlog.get_logger()
_SKEW = 15.0
"""A lease is longer than an attempt by so much, for clocks that differ."""


class Fencer:
    """See the module's text. `boot` names this replica."""

    def __init__(
        self, fence: Fence, store: Store, bus: Bus, clock: Clock, settings: PowerSyncSettings, boot: str
    ) -> None:
        self._fence = fence
        self._store = store
        self._bus = bus
        self._clock = clock
        self._settings = settings
        self._boot = boot
        self._attempts: dict[str, asyncio.Task[None]] = {}

    async def check(self, hosts: Sequence[Host]) -> None:
        """Tell new proofs, give up what is no more to be done, begin what is due. Nothing here waits for a fence."""
        now = self._clock.now()
        lost = [host for host in hosts if host.state is HostState.DOWN]
        for host in lost:
            await self._tell_proof(host)
        self._give_up({host.id for host in lost if host.fence is None})
        allowed = {host.id for host in within_limit(lost, now, self._settings)}
        for host in lost:
            if is_due(host, now) and host.id not in self._attempts:
                self._begin(host, is_allowed=not self._fence.is_drastic or host.id in allowed)

    async def settle(self) -> None:
        """Wait for the attempts under way."""
        if self._attempts:
            await asyncio.wait(set(self._attempts.values()))

    async def stop(self) -> None:
        """Give up the attempts under way: another replica, or the next start, begins them anew."""
        self._give_up(set())
        await self.settle()

    def _give_up(self, wanted: set[str]) -> None:
        for host_id, attempt in self._attempts.items():
            if host_id not in wanted:
                attempt.cancel()

    def _begin(self, host: Host, *, is_allowed: bool) -> None:
        attempt = asyncio.create_task(self._attempt(host, is_allowed), name=f"fence {host.id}")
        self._attempts[host.id] = attempt
        attempt.add_done_callback(lambda _: self._attempts.pop(host.id))

    async def _attempt(self, host: Host, is_allowed: bool) -> None:
        try:
            lease = await self._lease(host)
            if lease is not None:
                await self._try(host, lease, is_allowed)
        except Faulty as error:
            log.warning("fence.not_recorded", host=host.id, error=error.message)

    async def _try(self, host: Host, lease: Fencing, is_allowed: bool) -> None:
        try:
            async with asyncio.timeout(self._settings.fence_attempt_timeout):
                detail = await self._prove(host, is_allowed)
        except FenceFault as fault:
            await self._failed(host, lease, fault)
        except TimeoutError:
            await self._failed(host, lease, FenceFault(f"the attempt to fence host {host.id} took too long"))
        except asyncio.CancelledError:
            await self._end(host, lease, until=self._clock.now(), error=lease.error)
            raise
        except Exception as error:  # the edge of a plug-in
            log.exception("fence.broken", host=host.id)
            await self._failed(host, lease, FenceFault(f"{type(error).__name__}: {error}"))
        else:
            await self._proven(host, lease, detail)

    async def _prove(self, host: Host, is_allowed: bool) -> str:
        if not is_allowed:
            most, window = self._settings.auto_loss_limit, self._settings.auto_loss_window
            raise FenceFault(
                f"host {host.id} is not fenced yet: more than {most} hosts were lost within {window:g} s. It goes on "
                f"by itself after that, or at once when an admin forces it down or attests that it is off"
            )
        log.warning("fence.begun", host=host.id, fence=self._fence.name)
        return await self._fence.prove(host)

    async def _lease(self, host: Host) -> Fencing | None:
        """The right to fence a host; None if it is not lost any more, or another replica was quicker."""
        last, until = host.fencing, _in(self._clock.now(), self._settings.fence_attempt_timeout + _SKEW)
        is_same_loss = last is not None and last.lost_at == host.lost_at
        lease = Fencing(
            lost_at=host.lost_at,
            attempts=last.attempts + 1 if last and is_same_loss else 1,
            by=self._boot,
            until=until,
            error=last.error if last and is_same_loss else "",
        )
        was = {**_this_loss(host), "fencing.until": last.until if last else None}
        return lease if await self._store.hosts.set_fields(host.id, {"fencing": lease.model_dump()}, was=was) else None

    async def _proven(self, host: Host, lease: Fencing, detail: str) -> None:
        proof = FenceProof(proof=self._fence.name, at=self._clock.now(), detail=detail)
        fields = {"fence": proof.model_dump(), "fencing.by": None, "fencing.error": "", "fencing.output": ""}
        if await self._store.hosts.set_fields(host.id, fields, was={**_this_loss(host), **self._mine(lease)}):
            log.warning("fence.proven", host=host.id, proof=proof.proof, detail=detail)
        else:
            await self._end(host, lease, until=self._clock.now(), error="")

    async def _failed(self, host: Host, lease: Fencing, fault: FenceFault) -> None:
        """Kept for people; told when it is not what was told of this loss before."""
        retry_at = _in(self._clock.now(), self._settings.fence_retry)
        output = str(fault.facts.get("output", ""))
        log.warning("fence.failed", host=host.id, error=fault.message, output=output, attempts=lease.attempts)
        is_kept = await self._end(host, lease, until=retry_at, error=fault.message, output=output)
        if is_kept and fault.message != lease.error:
            failure = FenceFailed(
                host=host.id, attempts=lease.attempts, error=fault.message, output=output, retry_at=retry_at
            )
            await self._publish(host, "fence_failed", failure)

    async def _end(self, host: Host, lease: Fencing, *, until: datetime, error: str, output: str = "") -> bool:
        """Give the lease back; False if it was not this replica's any more."""
        ended = lease.model_copy(update={"by": None, "until": until, "error": error, "output": output})
        return await self._store.hosts.set_fields(host.id, {"fencing": ended.model_dump()}, was=self._mine(lease))

    def _mine(self, lease: Fencing) -> dict[str, Any]:
        return {"fencing.by": self._boot, "fencing.until": lease.until}

    async def _tell_proof(self, host: Host) -> None:
        """Whoever wrote the proof, one replica tells it."""
        proof = host.fence
        if proof is None or proof.is_told:
            return
        if await self._store.hosts.set_fields(host.id, {"fence.is_told": True}, was={"fence.is_told": False}):
            await self._publish(
                host, "fenced", HostFenced(host=host.id, proof=proof.proof, detail=proof.detail, at=proof.at)
            )

    async def _publish(self, host: Host, word: str, data: Event) -> None:
        message = Outgoing(EVENTS, f"host.{host.id}.{word}", f"virtfleet.host.{word}", data, "virtfleet/power-sync")
        await try_publish(self._bus, message)


def is_due(host: Host, now: datetime) -> bool:
    """Whether an attempt to fence a host may begin: it is lost, nothing is proven, and nobody is at it or has just
    failed in this loss."""
    last = host.fencing
    if host.state is not HostState.DOWN or host.fence is not None:
        return False
    is_of_another_loss = last is not None and last.by is None and last.lost_at != host.lost_at
    return last is None or is_of_another_loss or last.until <= now


def _this_loss(host: Host) -> dict[str, Any]:
    return {"state": HostState.DOWN, "lost_at": host.lost_at, "fence": None}


def _in(now: datetime, seconds: float) -> datetime:
    """In so many seconds, to the millisecond, as it will be read."""
    at = now + timedelta(seconds=seconds)
    return at.replace(microsecond=at.microsecond // 1000 * 1000)
