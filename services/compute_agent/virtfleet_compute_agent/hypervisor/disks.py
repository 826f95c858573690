"""An instance's own files: its root disk over the cached image, its folder, the volumes it expects to find."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from virtfleet_common.errors import HypervisorFault, ImageFault
from virtfleet_common.records import Image, Instance

from virtfleet_compute_agent.hypervisor.images import ImageCache
from virtfleet_compute_agent.hypervisor.layout import Layout, base_of, has_root_disk
from virtfleet_compute_agent.hypervisor.qemu_img import describe, qcow2_size, qemu_img

_GIB = 1024**3


class Disks:
    """Makes and grows root disks. `limit` is the longest wait in seconds for one run of qemu-img."""

    def __init__(self, layout: Layout, images: ImageCache, limit: float) -> None:
        self._layout = layout
        self._images = images
        self._limit = limit

    async def create(self, instance: Instance) -> None:
        """Have the disk and what it lies over. A disk that is there is kept and only grown."""
        disk = self._layout.disk(instance.id)
        if instance.image is not None:
            await self._images.fetch(instance.image)
        if not has_root_disk(instance):
            return
        if not disk.exists():
            await self._make(instance, disk)
        await self._grow(disk, instance.flavor.disk_gb * _GIB)

    async def _make(self, instance: Instance, disk: Path) -> None:
        """Under another name first: a disk that bears its own name is whole."""
        disk.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        part = disk.with_name("disk.part")
        try:
            await qemu_img("create", "-q", "-f", "qcow2", *await self._shape(instance, part), limit=self._limit)
            part.chmod(0o600)
            part.replace(disk)
        finally:
            part.unlink(missing_ok=True)

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

    async def _grow(self, disk: Path, size: int) -> None:
        if qcow2_size(disk) < size:
            await qemu_img("resize", "-q", "-f", "qcow2", str(disk), str(size), limit=self._limit)


def delete_files(layout: Layout, instance_id: str) -> None:
    """Remove the instance's folder, or the link that somebody put in its place, and nothing else. Blocking."""
    folder = layout.instance(instance_id)
    try:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        message = f"{folder} cannot be removed: {error}"
        raise HypervisorFault(message, operation="delete_files", code=error.errno or 0) from error


def lost_volumes(instance: Instance) -> list[str]:
    """The paths of the instance's block devices that are surely not there. Blocking.

    Raises HypervisorFault when one cannot be looked at: that proves nothing.
    """
    return [path for device in instance.block_devices if (path := str(device.get("path") or "")) and _is_gone(path)]


def _is_gone(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        message = f"{path} cannot be looked at: {error}"
        raise HypervisorFault(message, operation="lost_volumes", code=error.errno or 0) from error
    return False
