"""An instance's own files: its root disk over the cached image, its folder, the volumes it expects to find."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from virtfleet_common import volumes
from virtfleet_common.errors import HypervisorFault, ImageFault
from virtfleet_common.records import Image, Instance

from virtfleet_compute_agent.hypervisor import qcow2
from virtfleet_compute_agent.hypervisor.images import ImageCache
from virtfleet_compute_agent.hypervisor.layout import Layout, base_of, has_root_disk
from virtfleet_compute_agent.hypervisor.qemu_img import describe, qemu_img

_GIB = 1024**3


class Disks:
    """Makes and grows root disks. `limit` is the longest wait in seconds for one run of qemu-img."""

    def __init__(self, layout: Layout, images: ImageCache, limit: float) -> None:
        self._layout = layout
        self._images = images
        self._limit = limit

    async def create(self, instance: Instance, *, is_anew: bool) -> None:
        """Have the disk and what it lies over. A disk that is there is kept and only grown; one that a move had set
        aside, and that was given up since, is taken back. No guest ever finds a fresh disk in place of its own: once it
        was launched, one is made only if it begins anew (HypervisorFault `no_disk`).

        One that came from another host lies over nothing, and needs no more of its image than what boots it.
        """
        disk = self._layout.disk(instance.id)
        if not disk.exists() and self._layout.aside(instance.id).is_dir():
            shutil.rmtree(disk.parent, ignore_errors=True)
            self._layout.aside(instance.id).rename(disk.parent)
        found = qcow2.read(disk) if disk.exists() else None
        if found is None and has_root_disk(instance) and instance.launched_at is not None and not is_anew:
            raise HypervisorFault(f"its disk is not at {disk}", operation="create_disk", code="no_disk")
        if instance.image is not None:
            await self._images.fetch(instance.image, is_base_needed=found is None or found.backing is not None)
        if not has_root_disk(instance):
            return
        if found is None:
            await self._make(instance, disk)
        elif found.backing is not None:
            await self._find_base(instance.image, disk, Path(found.backing))
        await self.grow(instance)

    async def grow(self, instance: Instance) -> None:
        """Have the disk, if the instance has one, at least as large as the flavor says."""
        disk, size = self._layout.disk(instance.id), instance.flavor.disk_gb * _GIB
        if has_root_disk(instance) and qcow2.read(disk).size < size:
            await qemu_img("resize", "-q", "-f", "qcow2", str(disk), str(size), limit=self._limit)

    async def _make(self, instance: Instance, disk: Path) -> None:
        """Under another name first: a disk that bears its own name is whole. One that came meanwhile is kept."""
        disk.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        part = disk.with_name("disk.part")
        try:
            await qemu_img("create", "-q", "-f", "qcow2", *await self._shape(instance, part), limit=self._limit)
            _settle(part, disk)
        finally:
            part.unlink(missing_ok=True)

    async def _find_base(self, image: Image | None, disk: Path, known: Path) -> None:
        """Point a disk on shared storage at this host's cache, when another host's is elsewhere. The name says what is
        in the file, so only the same name is the same base."""
        base = base_of(image)
        cached = self._layout.cached(base) if base is not None else known
        if image is None or cached == known or cached.name != known.name:
            return
        where = "-F", image.disk_format, "-b", str(cached)
        await qemu_img("rebase", "-q", "-u", "-f", "qcow2", *where, str(disk), limit=self._limit)

    async def _shape(self, instance: Instance, part: Path) -> Sequence[str]:
        """The rest of `qemu-img create`: an overlay, as large as its base for now, or an empty disk."""
        base = base_of(instance.image)
        if instance.image is None or base is None:
            return str(part), f"{max(instance.flavor.disk_gb, 1)}G"
        await self._check_room(instance.image, self._layout.cached(base), instance.flavor.disk_gb * _GIB)
        return "-F", instance.image.disk_format, "-b", str(self._layout.cached(base)), str(part)

    async def _check_room(self, image: Image, base: Path, room: int) -> None:
        """A disk smaller than its image would cut the guest's file system short. `room` 0: whatever the image needs."""
        size = int((await describe(base, image.disk_format, self._limit))["virtual-size"])
        if 0 < room < size:
            raise ImageFault("the image is larger than the flavor's disk", image=image.id, needed=size, room=room)


def _settle(part: Path, disk: Path) -> None:
    part.chmod(0o600)
    if not disk.exists():
        part.replace(disk)


def delete_folder(folder: Path) -> None:
    """Remove the folder, or the link that somebody put in its place, and nothing else. Blocking."""
    try:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"{folder} cannot be removed: {error}"
        raise HypervisorFault(message, operation="delete_files", code=error.errno or 0) from error


def lost_volumes(instance: Instance) -> list[str]:
    """The paths of the instance's files and block devices that are surely not there. Blocking.

    Raises HypervisorFault when one cannot be looked at: that proves nothing.
    """
    return [path for one in volumes.present(instance) if (path := str(one.get("path") or "")) and _is_gone(path)]


def _is_gone(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        message = f"{path} cannot be looked at: {error}"
        raise HypervisorFault(message, operation="lost_volumes", code=error.errno or 0) from error
    return False
