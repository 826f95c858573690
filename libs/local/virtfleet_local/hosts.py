"""The simulated machines of a local fleet: each a folder with a hypervisor root of its own, and guests under it."""

import hashlib
import os
import tempfile
from pathlib import Path
from uuid import uuid4

import psutil

from virtfleet_local.caches import cache_folder
from virtfleet_local.processes import end, processes_naming

# No daemon, no cgroups, no namespaces: QEMU is an ordinary child process that writes its own log. As root, it must be
# told to stay root: where /dev/kvm exists and its user may not open it, libvirt would probe QEMU again and again.
_QEMU_CONF = """\
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
security_driver = "none"
stdio_handler = "file"
"""
_AS_ROOT = 'user = "root"\ngroup = "root"\n'
# A socket's path may have 107 letters. Below the root, QEMU's monitor needs up to 57 of them:
# /lib/qemu/domain-<id>-<20 letters of the name>/monitor.sock
_LONGEST_ROOT = 50


def host_folder(data: Path, host: str) -> Path:
    """All that a host has: its identity, its guests' disks, and the root of its hypervisor."""
    return data / "hosts" / host


def shared_folder(data: Path) -> Path:
    """Where all hosts keep their guests' disks, in a fleet with shared storage."""
    return data / "shared"


def hypervisor_root(data: Path, host: str) -> Path:
    """The root of the host's `qemu:///embed`: through a short link where the path itself is too long for a socket."""
    root = host_folder(data, host) / "libvirt"
    return root if len(str(root)) <= _LONGEST_ROOT else host_folder(_link(data), host) / "libvirt"


def prepare_root(data: Path, host: str) -> None:
    """Make the root of a host ready for libvirt."""
    real = host_folder(data, host) / "libvirt"
    (real / "etc").mkdir(parents=True, exist_ok=True)
    (real / "etc" / "qemu.conf").write_text((_AS_ROOT if os.geteuid() == 0 else "") + _QEMU_CONF)
    _share_capabilities(real / "cache")
    if hypervisor_root(data, host) != real and not is_linked(data):
        _link(data).unlink(missing_ok=True)
        _link(data).symlink_to(data, target_is_directory=True)


def is_linked(data: Path) -> bool:
    """Whether the short link is there, leads to `data`, and is nobody else's."""
    link = _link(data)
    return link.is_symlink() and link.lstat().st_uid == os.geteuid() and link.readlink() == data


def remove_link(data: Path) -> None:
    """Take the short link away, if there is one."""
    if is_linked(data):
        _link(data).unlink()


def boot_file(data: Path, host: str) -> Path:
    """What the host's kernel would say of its boot: another word after each power cut."""
    return host_folder(data, host) / "machine_boot"


def power_on(data: Path, host: str, *, afresh: bool) -> None:
    """The machine runs: since now (`afresh`), or since it was first switched on."""
    boot = boot_file(data, host)
    if afresh or not boot.exists():
        boot.parent.mkdir(parents=True, exist_ok=True)
        boot.write_text(uuid4().hex)


def guests(data: Path, host: str = "") -> list[psutil.Process]:
    """The QEMU processes of one host, or of all."""
    found = {*processes_naming(host_folder(data, host)), *processes_naming(host_folder(_link(data), host))}
    return [process for process in found if process.info["name"].startswith("qemu")]


def kill_guests(data: Path, host: str = "") -> set[int]:
    """Cut their power. Looks again until none is left: one may just have been started. Returns their pids."""
    killed: set[int] = set()
    while alive := guests(data, host):
        end(alive, 0)
        killed |= {guest.pid for guest in alive}
    return killed


def _share_capabilities(cache: Path) -> None:
    """All hosts here have the same QEMU, and asking it what it can do takes libvirt seconds: keep one answer for all.

    libvirt replaces the file whole, and asks again by itself when QEMU or the kernel has changed.
    """
    if not cache.exists():
        shared = cache_folder() / "libvirt"
        shared.mkdir(parents=True, exist_ok=True)
        cache.symlink_to(shared, target_is_directory=True)


def _link(data: Path) -> Path:
    return Path(tempfile.gettempdir(), f"virtfleet-{hashlib.sha256(str(data).encode()).hexdigest()[:8]}")
