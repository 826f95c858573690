"""Buries dead guests and exports. QEMU leaves its parent when it starts; when it ends somebody has to note it.

Usually the machine's first process does so at once. In a container, and on machines with a first process of their own
kind, it may take seconds or for ever, and libvirt, which waits until the pid is gone, would wait with every guest that
is switched off. So the process that runs libvirt's driver in itself adopts what its children leave behind.
"""

import ctypes
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_EVERY = 0.05
_LEFT_BEHIND = ("(qemu-system", "(timeout)", "(qemu-nbd)")
_lock = threading.Lock()
_undertaker: threading.Thread | None = None


def adopt() -> None:
    """From now on, for as long as this process lives, orphaned guests below it are its own to bury."""
    global _undertaker
    with _lock:
        if _undertaker is None and ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
            _undertaker = threading.Thread(target=_bury_for_ever, name="orphans", daemon=True)
            _undertaker.start()


def _bury_for_ever() -> None:
    while True:
        time.sleep(_EVERY)
        with suppress(OSError):
            for child in _children():
                _bury(child)


def _children() -> list[int]:
    """The children of the first thread: it is the one that adopts."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def _bury(pid: int) -> None:
    """Only a dead one, and of what was meant to leave its parent: others have parents here who wait for them."""
    with suppress(OSError):
        about = Path(f"/proc/{pid}/stat").read_text()
        if any(name in about for name in _LEFT_BEHIND) and ") Z " in about:
            os.waitpid(pid, os.WNOHANG)
