"""Child processes that outlive their parent, known by a pid file that a recycled pid cannot deceive.

A pid alone names whoever has it now. So the file keeps, beside the pid, the boot of the machine and the clock tick of
that boot at which the process began; only a process that agrees on all three is the one that was started here, and only
that one is ever signalled.
"""

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LOOK_AGAIN = 0.02


class StartError(RuntimeError):
    """A process ended, or did not become ready in time. The message ends with the tail of its log."""


class ManagedProcess:
    """One detached child process: its log in `<folder>/<name>.log`, its identity in `<folder>/<name>.pid`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log_file = folder / f"{name}.log"
        self.pid_file = folder / f"{name}.pid"

    def start(self, argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path | None = None) -> None:
        """Start it in a session of its own, appending to its log; nothing when it runs already."""
        if self.is_running():
            return
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            child = subprocess.Popen(
                [str(word) for word in argv],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._remember(child.pid)

    @property
    def pid(self) -> int | None:
        """The pid while it runs, otherwise None."""
        process = self._process()
        return process.pid if process else None

    def is_running(self) -> bool:
        """Whether the very process that was started here is alive (a zombie is not)."""
        return self._process() is not None

    def stop(self, timeout: float = 10.0) -> None:
        """Ask it to end, and kill it when it has not ended `timeout` seconds later."""
        if process := self._process():
            end([process], timeout)
        self.pid_file.unlink(missing_ok=True)

    def kill(self, *, with_children: bool = False) -> None:
        """End it at once, as a power cut would; when asked, its children too."""
        if process := self._process():
            with suppress(psutil.NoSuchProcess):
                children = process.children(recursive=True) if with_children else []
                end([process, *children], 0)
        self.pid_file.unlink(missing_ok=True)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal: SIGSTOP makes a hung process, SIGCONT mends it."""
        if process := self._process():
            process.send_signal(number)

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        if not self.log_file.exists():
            return "(no log)"
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - 16384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def wait_until(self, is_ready: Callable[[], bool], timeout: float, every: float = 0.05) -> None:
        """Wait for `is_ready`. Raises StartError when the process ends first, or `timeout` seconds pass."""
        deadline = time.monotonic() + timeout
        while not is_ready():
            if not self.is_running():
                raise StartError(f"{self.name} ended while starting. The end of {self.log_file}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise StartError(
                    f"{self.name} was not ready in {timeout:.0f} s. The end of {self.log_file}:\n{self.tail()}"
                )
            time.sleep(every)

    def _remember(self, pid: int) -> None:
        self.pid_file.write_text(
            json.dumps({"pid": pid, "started": _start_tick(pid), "boot": _BOOT_ID.read_text().strip()})
        )

    def _process(self) -> psutil.Process | None:
        try:
            known = json.loads(self.pid_file.read_text())
            process = psutil.Process(known["pid"])
            is_same = known == _identity(process.pid)
            return process if is_same and not has_ended(process) else None
        except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
            return None


def end(processes: Iterable[psutil.Process], timeout: float) -> None:
    """End processes: SIGTERM, and SIGKILL to those alive `timeout` seconds later; at once when it is 0."""
    alive = list(processes)
    if timeout:
        _signal_all(alive, signal.SIGTERM)
        alive = _wait_for(alive, timeout)
    _signal_all(alive, signal.SIGKILL)
    _wait_for(alive, 5)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process does and holds nothing any more.

    A zombie has ended: if it is our child it is buried here, and else by its parent, which may take its time (the first
    process of a container may look only every few seconds), so that waiting for the pid to vanish would be too much.
    But while other threads of a zombie still end, its ports are taken and its files locked.
    """
    try:
        process.wait(0)
    except psutil.TimeoutExpired:
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            return bool(is_zombie) and len(os.listdir(f"/proc/{process.pid}/task")) <= 1
    return True


def _wait_for(processes: Iterable[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait until all have ended, `timeout` seconds at the most. Returns those that have not."""
    deadline = time.monotonic() + timeout
    alive = [process for process in processes if not has_ended(process)]
    while alive and time.monotonic() < deadline:
        time.sleep(_LOOK_AGAIN)
        alive = [process for process in alive if not has_ended(process)]
    return alive


def processes_naming(folder: Path) -> list[psutil.Process]:
    """The processes whose command line names a path under `folder`: a host's guests, whoever started them."""
    prefix = f"{folder}/"
    found = psutil.process_iter(["cmdline", "name"])
    return [p for p in found if any(prefix in word for word in p.info["cmdline"] or ()) and p.pid != os.getpid()]


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports nobody listens on, below the range that the kernel hands to outgoing connections.

    They are kept over restarts, so one from the kernel's own range might be taken by a client in between.
    """
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(15000, 32000), 4000):
        if len(ports) == count:
            return ports
        if is_free(port, host):
            ports.append(port)
    raise StartError(f"There are no {count} free ports on {host}.")


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a connection to the port is accepted."""
    with closing(socket.socket()) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _identity(pid: int) -> dict[str, int | str]:
    return {"pid": pid, "started": _start_tick(pid), "boot": _BOOT_ID.read_text().strip()}


def _start_tick(pid: int) -> int:
    """When the process began, in clock ticks since boot: field 22 of /proc/PID/stat, whose second may hold anything."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
