"""Hypervisor adapters, and what they are asked to work on: instances, images, disks."""

import hashlib
import os
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from virtfleet_common.records import Flavor, Image, Instance
from virtfleet_common.settings import AgentSettings
from virtfleet_common.states import VmState
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FLAVOR = Flavor(_id="f1", name="m1.nano", vcpus=1, ram_mb=64, disk_gb=0)


def an_instance(**fields: Any) -> Instance:
    plain = {"_id": str(uuid4()), "name": "web", "project_id": "p1", "user_id": "u1", "vm_state": VmState.ACTIVE}
    return Instance(**plain | {"flavor": FLAVOR, "epoch": 1, "created_at": NOW, "updated_at": NOW} | fields)


def settings(uri: str, state_dir: Path, **fields: Any) -> AgentSettings:
    return AgentSettings(hypervisor_uri=uri, state_dir=state_dir, virt_type="qemu", **fields)


class opened:  # noqa: N801 (reads as a verb)
    """An open adapter for the length of a block."""

    def __init__(self, of: AgentSettings) -> None:
        self._hypervisor = LibvirtHypervisor(of)

    async def __aenter__(self) -> LibvirtHypervisor:
        await self._hypervisor.open()
        return self._hypervisor

    async def __aexit__(self, *_: object) -> None:
        await self._hypervisor.close()


def kill_guests_under(root: Path) -> None:
    """End the QEMU processes that a failed test left, by the pid files of their own driver."""
    for pid_file in root.glob("run/qemu/vf-*.pid"):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


def qcow2(path: Path, size: str, *arguments: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *arguments, str(path), size], check=True)
    return path


def image_of(path: Path, **fields: Any) -> Image:
    checksum = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    plain = {"_id": str(uuid4()), "name": "disk", "location": str(path), "checksum": checksum}
    return Image(**plain | {"created_at": NOW, "updated_at": NOW} | fields)
