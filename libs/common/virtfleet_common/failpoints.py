"""Named points where a test may make the process fail. Off unless the environment sets VIRTFLEET_FAILPOINTS.

The variable names a folder. A file there, called as the point, is taken away and what it says is done, once:
`kill` (SIGKILL to this process), `raise` (a RuntimeError), `hang` (block the calling thread for an hour, or until the
test makes the file `<point>.release`). `raise*3` is done three times.
"""

import os
import signal
import time
from pathlib import Path

_FOLDER = os.environ.get("VIRTFLEET_FAILPOINTS")


def reach(point: str) -> None:
    """Do what a test has laid down for `point`; nothing otherwise, at the cost of one comparison."""
    if _FOLDER is None:
        return
    armed = Path(_FOLDER, point)
    taken = armed.with_name(f"{point}.{os.getpid()}.taken")
    try:
        armed.rename(taken)
    except FileNotFoundError:
        return
    what, _, times = taken.read_text().strip().partition("*")
    if int(times or 1) > 1:
        armed.write_text(f"{what}*{int(times) - 1}")
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            _hang(Path(_FOLDER, f"{point}.release"))
        case _:
            raise RuntimeError(f"failpoint {point}")


def _hang(release: Path) -> None:
    deadline = time.monotonic() + 3600
    while not release.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
