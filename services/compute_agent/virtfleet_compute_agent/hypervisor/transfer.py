"""The sending end of a disk: qemu-img copies what was set aside to the destination's export.

Good path: the copy reads overlay and base as one disk and skips what is empty, then the destination is told to flush.
Bad path: whatever breaks it, the disk that is read stays as it was and the copy can be made again over what is there.
Why it is safe: qemu-img dies with the agent that started it, and one that did not is ended before its disk is sent,
put back or removed, so nobody reads the disk of a guest that runs.
"""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from virtfleet_common import failpoints
from virtfleet_common.errors import HypervisorFault, HypervisorTimeout
from virtfleet_common.ports import Export
from virtfleet_common.settings import AgentSettings

from virtfleet_compute_agent.hypervisor import nbd, processes, qcow2
from virtfleet_compute_agent.hypervisor.layout import Layout
from virtfleet_compute_agent.hypervisor.qemu_img import run_tool

Report = Callable[[int], Awaitable[None]]

_PERCENT = re.compile(rb"\((\d+)(?:\.\d+)?/100%\)")
_MIDDLE = 30
_MIB = 1024**2
_WHYS = (  # what QEMU's tools say, our code, what it means
    ("No space left on device", "destination_full", "the destination's storage is full"),
    ("Disk quota exceeded", "destination_full", "the destination's storage is full"),
    ("Failed to connect", "transfer_refused", "nobody listens at the destination"),
    ("TLS", "transfer_denied", "the destination does not accept the key"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One copy to make. `is_target_zero`: what is empty in the disk (of `size` bytes) is surely empty in the export, so
    that it need not be written; writing it takes 12 s and 128 MiB of the destination's storage for each TiB."""

    instance_id: str
    export: Export
    size: int
    is_target_zero: bool


class Sender:
    """Sends disks. A copy that an earlier agent left behind is found again by the argument that names its key."""

    def __init__(self, layout: Layout, settings: AgentSettings) -> None:
        self._layout = layout
        self._settings = settings

    def prepare(self, instance_id: str, export: Export) -> Plan:
        """End an earlier copy, lay down the key, note what is sent where. Blocking."""
        disk = self._layout.disk_aside(instance_id)
        if not disk.exists():
            raise HypervisorFault(f"{disk} is not there", operation="send_disk", code="no_disk")
        self.stop(instance_id)
        nbd.write_key(self._layout.transfer(instance_id), export)
        return Plan(instance_id, export, qcow2.read(disk).size, self._note(instance_id, disk, export))

    def _note(self, instance_id: str, disk: Path, export: Export) -> bool:
        """Whether nothing but this disk, as it is now, was ever sent to that export: each has a key of its own."""
        note, facts = self._layout.transfer_note(instance_id), disk.stat()
        sent = {"key": export.key, "file": [facts.st_dev, facts.st_ino, facts.st_mtime_ns]}
        try:
            known = json.loads(note.read_text())
        except (FileNotFoundError, ValueError):
            known = {}
        if known.get("key") != export.key:
            note.touch(mode=0o600)
            note.write_text(json.dumps(sent))
            return True
        return bool(known == sent)

    def stop(self, instance_id: str) -> None:
        """End whatever still copies the instance's disk, and forget its key. Blocking."""
        processes.stop(self._key(instance_id), patience=0.0, limit=self._settings.libvirt_timeout / 2)
        shutil.rmtree(self._layout.transfer(instance_id), ignore_errors=True)

    def forget(self, instance_id: str) -> None:
        """End whatever still copies the disk, which is about to go. Blocking."""
        self.stop(instance_id)
        self._layout.transfer_note(instance_id).unlink(missing_ok=True)

    async def send(self, plan: Plan, report: Report | None) -> None:
        """Copy and flush. Raises HypervisorFault with a code that says why, HypervisorTimeout if it took too long."""
        try:
            async with asyncio.timeout(self._settings.transfer_timeout):
                await self._copy(plan, _Progress(report))
                await self._flush(plan.instance_id, plan.export)
        except TimeoutError as error:
            raise HypervisorTimeout("the disk took too long", operation="send_disk", code="timeout") from error
        finally:
            shutil.rmtree(self._layout.transfer(plan.instance_id), ignore_errors=True)

    async def _copy(self, plan: Plan, progress: "_Progress") -> None:
        with (self._layout.transfer(plan.instance_id) / "complaint").open("w+b") as complaint:
            process = await asyncio.create_subprocess_exec(
                *self._command(plan), stdout=asyncio.subprocess.PIPE, stderr=complaint
            )
            try:
                await self._follow(process, progress)
                status = await process.wait()
            finally:
                await _end(process)
            if status != 0:
                complaint.seek(0)
                raise _explained(complaint.read().decode(errors="replace").strip(), plan.export)

    async def _flush(self, instance_id: str, export: Export) -> None:
        """By itself, because it takes as long as the destination's storage needs, without a sign of life."""
        arguments = ["-c", "flush", self._key(instance_id), "--image-opts", nbd.target(export)]
        try:
            await run_tool("qemu-io", *arguments, limit=self._settings.action_timeout)
        except HypervisorTimeout:
            raise
        except HypervisorFault as error:
            raise _explained(error.message, export) from error

    def _command(self, plan: Plan) -> list[str]:
        rate, disk = self._settings.transfer_rate_mb, self._layout.disk_aside(plan.instance_id)
        limit = ["-r", str(rate * _MIB)] if rate else []
        zeroes = ["--target-is-zero"] if plan.is_target_zero else []
        copy = ["qemu-img", "convert", "-p", "-n", "-t", "unsafe", *limit, *zeroes, self._key(plan.instance_id)]
        what = ["-f", "qcow2", str(disk), "--target-image-opts", nbd.target(plan.export)]
        return ["setpriv", "--pdeathsig", "KILL", *copy, *what]

    def _key(self, instance_id: str) -> str:
        return f"--object={nbd.client_key(self._layout.transfer(instance_id), instance_id)}"

    async def _follow(self, process: asyncio.subprocess.Process, progress: "_Progress") -> None:
        """Read what qemu-img prints until it ends. Raises HypervisorFault when it does nothing for too long."""
        assert process.stdout is not None
        pulse = _Pulse(process.pid, self._settings.transfer_stall)
        while True:
            try:
                async with asyncio.timeout(pulse.interval):
                    text = await process.stdout.read(4096)
            except TimeoutError:
                pulse.feel()
                continue
            if not text:
                return
            for percent in _PERCENT.findall(text):
                await progress.reach(int(percent))


class _Progress:
    """Tells each percent once."""

    def __init__(self, report: Report | None) -> None:
        self._report = report
        self._told = -1

    async def reach(self, percent: int) -> None:
        """`percent` of the disk is copied."""
        if percent <= self._told:
            return
        if self._told < _MIDDLE <= percent:
            failpoints.reach("send_disk.middle")
        self._told = percent
        if self._report is not None:
            await self._report(percent)


class _Pulse:
    """Whether a process does anything. Its percent cannot tell: one hundredth of a large disk takes minutes."""

    def __init__(self, pid: int, limit: float) -> None:
        self.interval = min(1.0, limit / 4)
        self._process = Path("/proc", str(pid))
        self._limit = limit
        self._last: tuple[str, ...] = ()
        self._since = time.monotonic()

    def feel(self) -> None:
        """Raises HypervisorFault when nothing was read, and no time computed, since `limit` seconds."""
        with suppress(OSError):  # it has just ended
            work = ((self._process / "io").read_text(), *_processor_time(self._process))
            if work != self._last:
                self._last, self._since = work, time.monotonic()
        if time.monotonic() - self._since >= self._limit:
            message = f"the transfer made no progress for {self._limit:g} s"
            raise HypervisorFault(message, operation="send_disk", code="transfer_stalled")


def _processor_time(process: Path) -> list[str]:
    """Ticks in user and in kernel mode. Source: proc(5), fields 14 and 15 of stat."""
    return (process / "stat").read_text().rpartition(")")[2].split()[11:13]


async def _end(process: asyncio.subprocess.Process) -> None:
    """Leave no child behind, whatever happened to who waited for it."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _explained(complaint: str, export: Export) -> HypervisorFault:
    whys = ((code, meaning) for words, code, meaning in _WHYS if words in complaint)
    code, meaning = next(whys, ("transfer_failed", "the transfer broke"))
    where = f"{export.address}:{export.port}"
    return HypervisorFault(f"{meaning} ({where}): {complaint}", operation="send_disk", code=code)
