"""The header of a qcow2 image: what a guest sees of its size, and what it lies over. Blocking functions.

Cheaper than a child process. Source: qemu's docs/interop/qcow2.txt.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from virtfleet_common.errors import HypervisorFault

_HEADER = struct.Struct(">4sIQIIQ")  # magic, version, offset and length of the backing file's name, cluster bits, size
_SIZE_AT = 24


@dataclass(frozen=True, slots=True)
class Qcow2:
    """`size` in bytes; `backing` is the path of the file it lies over, or None."""

    size: int
    backing: str | None


def read(disk: Path) -> Qcow2:
    """Raises HypervisorFault when there is no image, or something else."""
    try:
        with disk.open("rb") as file:
            start = file.read(_HEADER.size)
            if len(start) < _HEADER.size or not start.startswith(b"QFI\xfb"):
                raise _fault(f"{disk} is not a qcow2 image", "not_qcow2")
            _, _, offset, length, _, size = _HEADER.unpack(start)
            file.seek(offset)
            return Qcow2(size, os.fsdecode(file.read(length)) if offset else None)
    except OSError as error:
        raise _fault(f"{disk} cannot be read: {error}", "unreadable") from error


def set_size(disk: Path, size: int) -> None:
    """Make an image that was made too large as large as what was written to it, and have it on stable storage.

    Only where nothing was ever written past `size`. `qemu-img resize --shrink` visits every cluster that is not there:
    40 s for 16 TiB.
    """
    if not 0 < size <= read(disk).size:
        raise _fault(f"{disk} cannot be made {size} bytes large", "bad_size")
    with disk.open("r+b") as file:
        file.seek(_SIZE_AT)
        file.write(size.to_bytes(8, "big"))
        file.flush()
        os.fsync(file.fileno())


def _fault(message: str, code: str) -> HypervisorFault:
    return HypervisorFault(message, operation="qcow2", code=code)
