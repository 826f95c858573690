"""What libvirt reports by itself: lifecycle events from its own thread to whoever listens on the asyncio loop."""

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
from virtfleet_common.ports import GuestEvent
from virtfleet_common.states import PowerState

# SHUTDOWN is left out: the guest has halted but still holds its process, and STOPPED follows. DEFINED says nothing
# about power. STOPPED is refined by its detail below.
_STATES = {
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: PowerState.NOSTATE,
    libvirt.VIR_DOMAIN_EVENT_STARTED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_EVENT_STOPPED: PowerState.SHUTOFF,
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: PowerState.SUSPENDED,
    libvirt.VIR_DOMAIN_EVENT_CRASHED: PowerState.CRASHED,
}
_loop_lock = threading.Lock()
_loop_thread: threading.Thread | None = None


def start_event_loop() -> None:
    """Have libvirt's own event loop run in a daemon thread, once per process, before the first connection."""
    global _loop_thread
    with _loop_lock:
        if _loop_thread is not None:
            return
        libvirt.virEventRegisterDefaultImpl()
        _loop_thread = threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True)
        _loop_thread.start()


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def power_state_after(event: int, detail: int) -> PowerState | None:
    """The power state that a lifecycle event leads to; None when it says nothing about it."""
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED:
        return PowerState.CRASHED
    return _STATES.get(event)


class EventHub:
    """Carries events from libvirt's thread to the loop it was made on, and there to subscribers and watchers."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._is_closed = False

    def on_lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        """libvirt's callback, in libvirt's thread."""
        state = power_state_after(event, detail)
        if state is None or self._is_closed:
            return
        try:
            self._loop.call_soon_threadsafe(self._publish, GuestEvent(domain.UUIDString(), state))
        except RuntimeError:  # the loop is closed: the process is on its way out
            return

    def subscribe(self) -> AsyncIterator[GuestEvent]:
        """The events from now on, until the hub closes. Dropping the iterator ends the subscription."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        if self._is_closed:
            subscription.put(None)
        return subscription

    @contextmanager
    def watch(self, instance_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something happens to that guest."""
        changed = asyncio.Event()
        self._watchers.setdefault(instance_id, set()).add(changed)
        try:
            yield changed
        finally:
            watchers = self._watchers[instance_id]
            watchers.discard(changed)
            if not watchers:
                del self._watchers[instance_id]

    def close(self) -> None:
        """End every subscription."""
        self._is_closed = True
        for subscription in list(self._subscriptions):
            subscription.put(None)

    def _publish(self, event: GuestEvent) -> None:
        for subscription in list(self._subscriptions):
            subscription.put(event)
        for changed in self._watchers.get(event.instance_id, ()):
            changed.set()


class Subscription(AsyncIterator[GuestEvent]):
    """One listener's queue; None in it is the end."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[GuestEvent | None] = asyncio.Queue()

    def put(self, event: GuestEvent | None) -> None:
        """Queue an event for this listener."""
        self._queue.put_nowait(event)

    async def __anext__(self) -> GuestEvent:
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)  # so that every later call ends too
            raise StopAsyncIteration
        return event
