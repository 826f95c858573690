"""qemu-img as a child process with a deadline. Sizes are in bytes."""

import asyncio
import json
from pathlib import Path
from typing import Any

from virtfleet_common.errors import HypervisorFault, HypervisorTimeout, ImageFault

_MAGIC = b"QFI\xfb"


async def qemu_img(*arguments: str, limit: float) -> bytes:
    """What `qemu-img <arguments>` prints. Raises HypervisorFault, after `limit` s HypervisorTimeout."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec("qemu-img", *arguments, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise HypervisorFault(f"qemu-img cannot be run: {error}", operation="qemu-img", code="missing") from error
    try:
        async with asyncio.timeout(limit):
            output, complaint = await process.communicate()
    except TimeoutError as error:
        raise HypervisorTimeout(
            "qemu-img took too long", operation=f"qemu-img {arguments[0]}", code="timeout"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        message = complaint.decode(errors="replace").strip()
        raise HypervisorFault(message, operation=f"qemu-img {arguments[0]}", code=process.returncode)
    return output


async def describe(path: Path, disk_format: str, limit: float) -> dict[str, Any]:
    """What qemu-img knows of an image that is said to be of `disk_format`. Raises ImageFault if it is not."""
    try:
        answer = await qemu_img("info", "--output=json", "-f", disk_format, str(path), limit=limit)
    except HypervisorTimeout:
        raise
    except HypervisorFault as error:
        raise ImageFault(f"not a {disk_format} image: {error.message}", path=str(path)) from error
    facts: dict[str, Any] = json.loads(answer)
    return facts


def qcow2_size(path: Path) -> int:
    """The size that a guest sees of the qcow2 image at `path`, from its header: cheaper than a child process.

    Raises HypervisorFault when there is none, or something else. Source: qemu's docs/interop/qcow2.txt.
    """
    try:
        with path.open("rb") as file:
            header = file.read(32)
    except OSError as error:
        raise HypervisorFault(f"{path} cannot be read: {error}", operation="qcow2", code="unreadable") from error
    if len(header) < 32 or not header.startswith(_MAGIC):
        raise HypervisorFault(f"{path} is not a qcow2 image", operation="qcow2", code="not_qcow2")
    return int.from_bytes(header[24:32], "big")
