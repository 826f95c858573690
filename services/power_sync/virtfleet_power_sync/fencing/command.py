"""A program is the fence: it switches the host off, and is then asked for its status until it says that it is off.

Only that counts: a program that ended well has not switched anything off yet, and one that failed may have. The status
is read as fence agents and ipmitool print it: the last line that was printed ends with off (`off`, `Status: OFF`,
`Chassis Power is off`), and the program ended with 0, or with 2 as fence agents do then.
"""

import asyncio
import os
import re
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from virtfleet_common.errors import Faulty, FenceFault
from virtfleet_common.ports import Fence
from virtfleet_common.records import Host
from virtfleet_common.settings import PowerSyncSettings

_OFF = re.compile(r"(^|\bis\s|[:=]\s*)off\W*$", re.IGNORECASE)
_ENDS_OF_A_STATUS = (0, 2)
_LONGEST_KEPT = 2000


class NoFenceCommand(Faulty):
    """The settings say that a program is the fence, and name none."""

    code = "no_fence_command"


@dataclass(frozen=True, slots=True)
class Said:
    """What one call of the program came to; `code` None: it was ended, because it took too long."""

    action: str
    code: int | None
    output: str
    complaint: str

    @property
    def is_off(self) -> bool:
        """Whether this is a status, and says that the host is off."""
        return self.action == "status" and self.code in _ENDS_OF_A_STATUS and bool(_OFF.search(self.last_line))

    @property
    def last_line(self) -> str:
        """The last line that says anything."""
        return next((line.strip() for line in reversed(self.output.splitlines()) if line.strip()), "")

    def __str__(self) -> str:
        ended = "took too long" if self.code is None else f"ended with {self.code}"
        return "\n".join([f"{self.action} {ended}", *filter(None, (self.output.strip(), self.complaint.strip()))])


class Command(Fence):
    """See the module's text."""

    name = "command"
    is_drastic = True

    def __init__(self, settings: PowerSyncSettings) -> None:
        """Raises NoFenceCommand."""
        if not settings.fence_command:
            raise NoFenceCommand("VIRTFLEET_FENCING is command, and VIRTFLEET_FENCE_COMMAND names no program")
        self._settings = settings

    async def prove(self, host: Host) -> str:
        """Switch the host off and see it off. Raises FenceFault with what the program said."""
        asked = await self._call(host, "off")
        deadline = time.monotonic() + self._settings.fence_off_timeout
        while not (status := await self._call(host, "status")).is_off:
            if time.monotonic() > deadline:
                raise FenceFault(f"host {host.id} was not seen off", output=f"{asked}\n{status}"[-_LONGEST_KEPT:])
            await asyncio.sleep(self._settings.fence_status_interval)
        return f"its status is: {status.last_line}"

    async def _call(self, host: Host, action: str) -> Said:
        """Run the program. It is ended, with all that it started, when it takes too long or nobody waits for it."""
        words = [word.replace("{action}", action).replace("{host}", host.id) for word in self._settings.fence_command]
        process = await _started(words, _facts(host, action))
        is_over = False
        try:
            async with asyncio.timeout(self._settings.fence_call_timeout):
                output, complaint = await process.communicate()
            is_over = True
            return Said(action, process.returncode, _text(output), _text(complaint))
        except TimeoutError:
            return Said(action, None, "", "")
        finally:
            if not is_over:
                await _ended(process)


async def _started(words: Sequence[str], facts: Mapping[str, str]) -> Process:
    """The running program. A start in the middle of which nobody waits any more is waited for, to end what it started.
    Raises FenceFault."""
    pipe = asyncio.subprocess.PIPE
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=facts, start_new_session=True
        )
    )
    try:
        return await asyncio.shield(starting)
    except OSError as error:
        raise FenceFault(f"{words[0]} cannot be run: {error}") from error
    except asyncio.CancelledError:
        await _ended(await starting)
        raise


async def _ended(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _facts(host: Host, action: str) -> dict[str, str]:
    """The program's environment: this service's, without its settings (they hold passwords), and what is asked."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTFLEET_")}
    return {
        **kept,
        "FENCE_ACTION": action,
        "FENCE_HOST": host.id,
        "FENCE_HOST_UUID": host.uuid,
        "FENCE_HOST_IP": host.host_ip,
        "FENCE_LAST_SEEN": host.last_seen.isoformat() if host.last_seen else "",
    }


def _text(output: bytes) -> str:
    return output.decode(errors="replace")
