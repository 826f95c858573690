"""The receiving end of a disk: one qemu-nbd per instance that waits for it, with a key of its own.

qemu-nbd runs apart from the agent, in its own session and under `timeout`: it outlives a killed agent, and never its
deadline. What is known of it lies in a folder of the host (key, log, facts of the export). The facts are written last,
so an export without them is a leftover. What arrives goes to a file beside the instance's folder that bears the name of
its transfer: on storage that hosts share, it stands in nobody's way.
"""

import asyncio
import errno
import json
import os
import random
import secrets
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from virtfleet_common.errors import HypervisorFault, HypervisorTimeout
from virtfleet_common.ports import Export
from virtfleet_common.records import Instance
from virtfleet_common.settings import AgentSettings

from virtfleet_compute_agent.hypervisor import nbd, processes, qcow2
from virtfleet_compute_agent.hypervisor.layout import Layout, has_root_disk
from virtfleet_compute_agent.hypervisor.pool import Pool
from virtfleet_compute_agent.hypervisor.qemu_img import qemu_img

T = TypeVar("T")

_ROOM = 16 * 1024**4  # nobody knows the disk's size before its source is asked; empty, so large an image is 448 KiB
_CLIENTS = 16  # a source that lost its power may leave connections that nobody ends
_PATIENCE = 10.0  # seconds for qemu-nbd to write what it still holds
_EVERY = 0.01


class Exports:
    """Opens and closes exports, one at a time per instance."""

    def __init__(self, layout: Layout, settings: AgentSettings, pool: Pool) -> None:
        self._layout = layout
        self._settings = settings
        self._pool = pool
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self, instance: Instance, token: str) -> Export:
        """The export of that token if it lives, else a fresh and empty one."""
        if not has_root_disk(instance):
            return nowhere(token)
        async with self._lock(instance.id):
            living = await self._file_work(lambda: self._find(instance.id, token))
            return living or await self._open_fresh(instance.id, token)

    async def close(self, instance_id: str, *, adopt: bool, size: int, token: str | None = None) -> None:
        """Listen no longer; what arrived becomes the instance's disk of `size` bytes, or goes.

        With a token: unless it is another's. It is that until it is closed, whether somebody listens or not.
        """
        is_wanted = adopt and size > 0
        async with self._lock(instance_id):
            known = await self._file_work(lambda: _read_facts(self._layout.export(instance_id)))
            if token is not None and known is not None and known.token != token:
                return
            its = known.token if known is not None else token
            await self._file_work(lambda: self._stop(instance_id, _PATIENCE if is_wanted else 0.0))
            await self._file_work(
                lambda: self._adopt(instance_id, its, size) if is_wanted else self._discard(instance_id, its)
            )

    async def forget(self, instance_id: str) -> None:
        """Close the export that this host has for the instance, if it has one."""
        if await self._file_work(self._layout.export(instance_id).exists):
            await self.close(instance_id, adopt=False, size=0)

    def _lock(self, instance_id: str) -> asyncio.Lock:
        return self._locks.setdefault(instance_id, asyncio.Lock())

    async def _file_work(self, work: Callable[[], T]) -> T:
        try:
            return await self._pool.run(work, self._settings.libvirt_timeout, "export")
        except OSError as error:
            raise _fault(str(error), error.errno or 0) from error

    def _find(self, instance_id: str, token: str) -> Export | None:
        known = _read_facts(self._layout.export(instance_id))
        is_same = known is not None and known.token == token
        return known if is_same and processes.find(self._mark(instance_id)) else None

    async def _open_fresh(self, instance_id: str, token: str) -> Export:
        """Try ports until one is ours, in random order: other agents of the machine look in the same range."""
        await self._file_work(lambda: self._clear(instance_id, token))
        await self._make_room(self._layout.incoming(instance_id, token))
        address, (first, last) = self._settings.host_ip, self._settings.transfer_ports
        for port in random.sample(range(first, last + 1), last - first + 1):
            export = Export(address, port, nbd.identity(instance_id), secrets.token_hex(32), token)
            if _is_free(address, port) and await self._listen(instance_id, export):
                return export
        raise _fault(f"every port from {first} to {last} is taken", "no_port")

    async def _make_room(self, incoming: Path) -> None:
        await qemu_img("create", "-q", "-f", "qcow2", str(incoming), str(_ROOM), limit=self._settings.libvirt_timeout)
        await self._file_work(lambda: incoming.chmod(0o600))

    def _clear(self, instance_id: str, token: str) -> None:
        self._stop(instance_id, patience=0.0)
        known = _read_facts(self._layout.export(instance_id))
        self._discard(instance_id, known.token if known is not None else None)
        self._discard(instance_id, token)
        self._layout.instances.mkdir(mode=0o711, parents=True, exist_ok=True)

    async def _listen(self, instance_id: str, export: Export) -> bool:
        """Whether qemu-nbd listens on the export's port now; False when another process took it meanwhile."""
        folder = self._layout.export(instance_id)
        await self._file_work(lambda: nbd.write_key(folder, export))
        await self._start(self._command(instance_id, export), _log(folder))
        if await self._file_work(lambda: self._await_start(instance_id)):
            await self._file_work(lambda: _write_facts(folder, export))
            return True
        complaint = _log(folder).read_text(errors="replace").strip()
        if "Address already in use" in complaint:
            return False
        raise _fault(complaint or "qemu-nbd could not be started", "export_failed")

    async def _start(self, command: list[str], log: Path) -> None:
        nothing = asyncio.subprocess.DEVNULL
        with log.open("wb") as file:
            starter = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=file, stderr=file, cwd="/")
        await starter.wait()  # setsid leaves at once

    def _command(self, instance_id: str, export: Export) -> list[str]:
        key = nbd.server_key(self._layout.export(instance_id))
        deadline = ["timeout", "--kill-after=10", f"{self._settings.transfer_timeout:g}"]
        incoming = self._layout.incoming(instance_id, export.token)
        image = ["-f", "qcow2", "--discard=unmap", "-x", nbd.EXPORT_NAME, str(incoming)]
        access = ["-b", export.address, "-p", str(export.port), "--object", key, "--tls-creds=key"]
        server = ["qemu-nbd", "-t", "-e", str(_CLIENTS), self._mark(instance_id)]
        return ["setsid", "--fork", *deadline, *server, *access, *image]

    def _await_start(self, instance_id: str) -> bool:
        """qemu-nbd writes its pid file once it listens; if it fails, it says why and is gone."""
        folder = self._layout.export(instance_id)
        deadline = time.monotonic() + self._settings.libvirt_timeout / 2
        while not _pid_file(folder).exists():
            if time.monotonic() > deadline:
                raise HypervisorTimeout("qemu-nbd does not listen", operation="export", code="timeout")
            if _log(folder).stat().st_size > 0 and not processes.find(self._mark(instance_id)):
                return False
            time.sleep(_EVERY)
        return True

    def _mark(self, instance_id: str) -> str:
        """The argument that only this instance's qemu-nbd bears, and the programs it was started by."""
        return f"--pid-file={_pid_file(self._layout.export(instance_id))}"

    def _stop(self, instance_id: str, patience: float) -> None:
        limit = max(patience, self._settings.libvirt_timeout / 2)
        processes.stop(self._mark(instance_id), patience=patience, limit=limit)

    def _discard(self, instance_id: str, token: str | None) -> None:
        if token is not None:
            self._layout.incoming(instance_id, token).unlink(missing_ok=True)
        shutil.rmtree(self._layout.export(instance_id), ignore_errors=True)

    def _adopt(self, instance_id: str, token: str | None, size: int) -> None:
        """Each part may have been done before the agent was killed; the last of them, the renaming, settles it."""
        incoming = self._layout.incoming(instance_id, token) if token is not None else None
        disk = self._layout.disk(instance_id)
        if incoming is not None and incoming.exists():
            if disk.exists():
                raise _fault(f"{disk} is there already", "disk_exists")
            qcow2.set_size(incoming, size)
            disk.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            incoming.rename(disk)
            _sync(disk.parent)
            _sync(incoming.parent)
        elif not disk.exists():
            raise _fault(f"nothing has arrived for {disk}", "no_disk")
        shutil.rmtree(self._layout.export(instance_id), ignore_errors=True)


def nowhere(token: str) -> Export:
    """The export of an instance that has no disk to send."""
    return Export("", 0, "", "", token)


def _is_free(address: str, port: int) -> bool:
    """Whether nobody listens there. Raises HypervisorFault on an address that is not this host's."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise _fault(f"{address} port {port}: {error}", error.errno or 0) from error
    return True


def _facts(folder: Path) -> Path:
    return folder / "export.json"


def _log(folder: Path) -> Path:
    return folder / "log"


def _pid_file(folder: Path) -> Path:
    return folder / "pid"


def _read_facts(folder: Path) -> Export | None:
    try:
        return Export(**json.loads(_facts(folder).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write_facts(folder: Path, export: Export) -> None:
    """Under another name first: facts that bear their own name are whole."""
    part = folder / "export.part"
    part.write_text(json.dumps(asdict(export)))
    part.replace(_facts(folder))


def _sync(folder: Path) -> None:
    """Have what was renamed in `folder` survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fault(message: str, code: str | int) -> HypervisorFault:
    return HypervisorFault(message, operation="export", code=code)
