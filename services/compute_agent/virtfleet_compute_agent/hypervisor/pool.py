"""Threads for calls that may hang. A call past its deadline is given up on; its thread is lost until it returns.

`concurrent.futures` would join a hung thread when the process exits, so that the agent could never be stopped.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from virtfleet_common.errors import HypervisorTimeout

T = TypeVar("T")


class _Call(Generic[T]):
    """One piece of work on its way to a thread and back."""

    def __init__(self, work: Callable[[], T], loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.answer: asyncio.Future[T] = loop.create_future()
        self.is_taken = False
        self.is_abandoned = False

    def deliver(self, result: T | None, error: BaseException | None) -> None:
        """Hand the outcome to the waiting task; called in the thread, nobody may be there any more."""
        try:
            self.loop.call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:  # the loop is closed: the process is on its way out
            return

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.answer.done():
            return
        if error is not None:
            self.answer.set_exception(error)
        else:
            self.answer.set_result(result)


class Pool:
    """`size` daemon threads, started when first needed, taking calls in order."""

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._calls: queue.SimpleQueue[_Call[Any] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._busy = 0
        self._stuck = 0

    @property
    def is_stuck(self) -> bool:
        """Whether calls that passed their deadline hold every thread."""
        return self._stuck >= self._size

    async def run(self, work: Callable[[], T], timeout: float, operation: str) -> T:
        """What `work` returns or raises. Raises HypervisorTimeout after `timeout` seconds, waiting for a thread
        included; at once when every thread is stuck, so that calls do not pile up behind a hung hypervisor."""
        if self.is_stuck:
            raise self._too_late(f"every thread of the {self._name} pool hangs", operation, 0.0)
        call = _Call(work, asyncio.get_running_loop())
        self._submit(call)
        try:
            async with asyncio.timeout(timeout):
                return await call.answer
        except TimeoutError as error:
            if call.answer.done() and not call.answer.cancelled():
                raise  # the work's own TimeoutError
            raise self._too_late(f"no answer within {timeout:g} s", operation, timeout) from error
        finally:
            self._abandon(call)

    def close(self) -> None:
        """Let idle threads end. Hung ones are daemons and die with the process."""
        for _ in self._threads:
            self._calls.put(None)
        self._threads.clear()

    def _submit(self, call: _Call[Any]) -> None:
        self._calls.put(call)
        with self._lock:
            self._busy += 1
            if self._busy <= len(self._threads) or len(self._threads) >= self._size:
                return
        thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _abandon(self, call: _Call[Any]) -> None:
        """Nobody waits any longer: work not yet begun is never begun, work that goes on counts as stuck."""
        if call.answer.done() and not call.answer.cancelled():
            return
        with self._lock:
            call.is_abandoned = True
            self._stuck += call.is_taken

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._take(call):
                self._execute(call)
            self._give_back(call)

    def _take(self, call: _Call[Any]) -> bool:
        with self._lock:
            call.is_taken = not call.is_abandoned
            return call.is_taken

    def _execute(self, call: _Call[Any]) -> None:
        try:
            call.deliver(call.work(), None)
        except BaseException as error:  # whatever it is belongs to the task that waits
            call.deliver(None, error)

    def _give_back(self, call: _Call[Any]) -> None:
        with self._lock:
            self._busy -= 1
            self._stuck -= call.is_taken and call.is_abandoned
            call.is_taken = False

    @staticmethod
    def _too_late(why: str, operation: str, seconds: float) -> HypervisorTimeout:
        return HypervisorTimeout(f"{operation}: {why}", operation=operation, code="timeout", seconds=seconds)
