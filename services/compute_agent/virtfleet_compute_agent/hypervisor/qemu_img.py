"""qemu-img, and its like, as child processes with a deadline."""

import asyncio
import json
from pathlib import Path
from typing import Any

from virtfleet_common.errors import HypervisorFault, HypervisorTimeout, ImageFault


async def qemu_img(*arguments: str, limit: float) -> bytes:
    """What `qemu-img <arguments>` prints. Raises HypervisorFault, after `limit` s HypervisorTimeout."""
    return await run_tool("qemu-img", *arguments, limit=limit)


async def run_tool(program: str, *arguments: str, limit: float) -> bytes:
    """What one of QEMU's tools prints. Raises HypervisorFault, after `limit` s HypervisorTimeout."""
    pipe, operation = asyncio.subprocess.PIPE, f"{program} {arguments[0]}"
    try:
        process = await asyncio.create_subprocess_exec(program, *arguments, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise HypervisorFault(f"{program} cannot be run: {error}", operation=operation, code="missing") from error
    try:
        async with asyncio.timeout(limit):
            output, complaint = await process.communicate()
    except TimeoutError as error:
        raise HypervisorTimeout(f"{program} took too long", operation=operation, code="timeout") from error
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        message = complaint.decode(errors="replace").strip()
        raise HypervisorFault(message, operation=operation, code=process.returncode or 0)
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
