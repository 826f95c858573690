"""What services count, and the small HTTP server that shows it: /healthz, /readyz, /metrics."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import Counter, Gauge, Histogram, generate_latest

PUBLISHED = Counter("virtfleet_bus_published_total", "Messages confirmed by the broker")
WRITES = Counter("virtfleet_store_writes_total", "Write commands confirmed by the database", ["command"])
STEPS = Counter("virtfleet_steps_total", "Steps by what became of them", ["step", "outcome"])
STEP_SECONDS = Histogram("virtfleet_step_seconds", "Time from claim to finish", ["step"])
PLACEMENT_SECONDS = Histogram("virtfleet_placement_seconds", "Time from the request for a host to its claim")
AUDIT_DIFFERENCES = Gauge("virtfleet_audit_differences", "Differences that the last audit of claims found")
ORPHANS = Gauge("virtfleet_orphans", "Guests that no record knows, by the latest listings of their hosts")
DUPLICATES_MESSAGES = os.environ.get("VIRTFLEET_DUPLICATE_MESSAGES") == "1"
"""A test's wish: every command goes out twice."""

Check = Callable[[], Awaitable[str | None]]
"""Says why the service is not ready; None when it is."""


@asynccontextmanager
async def serve_health(host: str, port: int, check: Check) -> AsyncIterator[None]:
    """Answer /healthz (alive), /readyz (503 and why, when not ready) and /metrics; port 0: serve nothing."""
    if port == 0:
        yield
        return

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(5):
            line = await reader.readline()
            status, body = await _respond(line.decode("latin-1").split(" ")[1:2], check)
            head = [
                f"HTTP/1.1 {status}",
                f"Content-Length: {len(body)}",
                "Content-Type: text/plain",
                "Connection: close",
            ]
            writer.write("\r\n".join([*head, "", ""]).encode() + body)
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(answer, host, port)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


async def _respond(path: list[str], check: Check) -> tuple[str, bytes]:
    match path:
        case ["/healthz"]:
            return "200 OK", b"alive\n"
        case ["/readyz"]:
            why = await check()
            return ("200 OK", b"ready\n") if why is None else ("503 Service Unavailable", f"{why}\n".encode())
        case ["/metrics"]:
            return "200 OK", generate_latest()
        case _:
            return "404 Not Found", b"/healthz, /readyz, /metrics\n"
