"""Runs the demo: act by act, each on a fleet of its own, and an end that leaves nothing behind.

Exits with 0 only if everything in `sights` was observed.
"""

import asyncio
import fcntl
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import httpx
from rich.console import Console
from virtfleet_common.client import FleetClient
from virtfleet_common.errors import VirtfleetError

from virtfleet_local import guest_image
from virtfleet_local.demo.chapters import FAILPOINTS
from virtfleet_local.demo.screen import Screen
from virtfleet_local.demo.sights import NotSeenError
from virtfleet_local.demo.stage import Stage, Tale
from virtfleet_local.demo.story import ACTS, Act
from virtfleet_local.fleet import LocalFleet
from virtfleet_local.processes import StartError

_FOLDER = Path(".virtfleet-demo")
_LOGS = _FOLDER / "last-failure"
_TOLD = ("instance.#", *(f"host.*.{word}" for word in ("up", "unknown", "down", "fenced", "fence_failed")))
_TROUBLE = (NotSeenError, VirtfleetError, StartError, httpx.HTTPError, guest_image.BuildError)
"""What stops the story; everything else is a bug of the demo and shows its traceback."""


def main() -> int:
    """The whole evening. Returns the exit code."""
    console = Console()
    screen = Screen(console)
    console.print("[bold]Virtfleet[/]: three QEMU hosts (software emulation), a few guests, and accidents.")
    _clear_leftovers(console)
    why: str | None = None
    with _folder() as data:
        try:
            for act in ACTS:
                _perform(act, screen, data / act.name)
        except _TROUBLE as trouble:
            why = f"{trouble}"
        except KeyboardInterrupt:
            why = "interrupted"
        if why is not None:
            why += f"\nThe logs are in {_keep_logs(data)}."
    screen.closes(why)
    if why is not None or screen.misses():
        return 1
    shutil.rmtree(_LOGS, ignore_errors=True)
    with suppress(OSError):  # another demo is on
        _FOLDER.rmdir()
    return 0


def _perform(act: Act, screen: Screen, data: Path) -> None:
    (data / FAILPOINTS).mkdir(parents=True)
    env = {"*": act.settings, "agent": {"VIRTFLEET_FAILPOINTS": str(data / FAILPOINTS)}}
    fleet = LocalFleet(data, hosts=3, hypervisor="qemu", env=env, shared_storage=act.shared_storage)
    _heed_interrupts()
    try:
        with screen.console.status("Starting") as status:
            fleet.up(report=status.update)
        asyncio.run(_tell(act, screen, fleet))
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        with screen.console.status("Stopping the fleet"):
            fleet.down()


async def _tell(act: Act, screen: Screen, fleet: LocalFleet) -> None:
    tale = Tale(screen)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(FleetClient(fleet.file.member_amqp_url))
        http = httpx.AsyncClient(base_url=f"{fleet.file.api_url}/v2.1", timeout=30, trust_env=False)
        stage = Stage(fleet, client, await stack.enter_async_context(http), screen, tale)
        arriving = await stack.enter_async_context(client.subscribed(*_TOLD))
        reading = asyncio.create_task(tale.follow(arriving))
        stack.callback(reading.cancel)
        for chapter in act.chapters:
            screen.chapter(chapter.title, chapter.what)
            await chapter.play(stage)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for this run alone. The lock says that it is in use; the kernel lets go of it, whatever happens."""
    _FOLDER.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix="run-", dir=_FOLDER)).absolute()
    with (data / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield data
        finally:
            shutil.rmtree(data, ignore_errors=True)


def _clear_leftovers(console: Console) -> None:
    """A demo that was killed could not clean up: its fleet is stopped and its folder removed by the next one."""
    for data in _FOLDER.glob("run-*"):
        with (data / "demo.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # another demo is on
            console.print(f"[dim]Clearing away {data}, left by a demo that was killed[/]")
            for act in ACTS:
                LocalFleet(data / act.name).down()
            shutil.rmtree(data, ignore_errors=True)


def _keep_logs(data: Path) -> Path:
    """The logs of the last failure, for whoever wants to know."""
    shutil.rmtree(_LOGS, ignore_errors=True)
    _LOGS.mkdir(parents=True)
    for log in data.rglob("*.log"):
        shutil.copy(log, _LOGS / "-".join(log.relative_to(data).parts))
    return _LOGS


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
