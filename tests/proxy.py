"""A wire that a test can cut: everything that one host says to broker and database goes through it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Wire:
    """A forwarder from a port of its own to `port` on this machine. Cut, it swallows what comes and closes nothing, as
    a network that is down does."""

    def __init__(self, port: int) -> None:
        self._far = port
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self.port = 0

    def start(self) -> None:
        """Listen, on a thread of its own."""
        threading.Thread(target=self._run, daemon=True).start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def cut(self) -> None:
        """Nothing gets through any more."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """What was held back arrives late, and what comes arrives."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def stop(self) -> None:
        """Listen no longer."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        with self._runner:  # which ends what is still under way
            self._loop.run_forever()

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def _join(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        far, to_far = await asyncio.open_connection("127.0.0.1", self._far)
        await asyncio.gather(self._copy(near, to_far), self._copy(far, to_near))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                await self._whole.wait()
                target.write(data)
                await target.drain()
        target.close()


@contextmanager
def wire_to(url: str) -> Iterator[tuple[Wire, str]]:
    """A wire to the server of an address, and the address of its near end."""
    port = urlsplit(url).port
    assert port is not None
    wire = Wire(port)
    wire.start()
    try:
        yield wire, url.replace(f":{port}", f":{wire.port}")
    finally:
        wire.stop()
