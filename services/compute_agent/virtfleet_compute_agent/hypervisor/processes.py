"""Child processes that may outlive the agent, found again by an argument that only they bear. Blocking functions.

A pid in a file proves nothing after a restart: the number may be another's by now. The command line of a living process
does, and looking again through a pidfd leaves no moment in which the number could change hands.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from virtfleet_common.errors import HypervisorTimeout

_EVERY = 0.01
_LOOKS = 3


def find(argument: str) -> list[int]:
    """The pids of the living processes with that argument, wrappers included.

    One that is just being replaced by another program (execve) bears no arguments for a moment, and is not found.
    """
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _bears(path, argument)]


def stop(argument: str, *, patience: float, limit: float) -> None:
    """End every process with that argument: asked first (SIGTERM) and killed after `patience` seconds.

    Raises HypervisorTimeout when one is still there after `limit` seconds: it waits for a disk that does not answer.
    """
    begun = time.monotonic()
    if patience > 0:
        _signal(argument, signal.SIGTERM)
    while not _is_surely_gone(argument):
        waited = time.monotonic() - begun
        if waited > limit:
            raise HypervisorTimeout("a process cannot be ended", operation="stop", code="timeout", argument=argument)
        if waited >= patience:
            _signal(argument, signal.SIGKILL)
        time.sleep(_EVERY)


def _is_surely_gone(argument: str) -> bool:
    for _ in range(_LOOKS):
        if find(argument):
            return False
        time.sleep(_EVERY)
    return True


def _signal(argument: str, number: signal.Signals) -> None:
    for pid in find(argument):
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                if _bears(Path("/proc", str(pid)), argument):
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


def _bears(process: Path, argument: str) -> bool:
    """A zombie has no arguments any more, and is as good as gone."""
    try:
        return os.fsencode(argument) in (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
