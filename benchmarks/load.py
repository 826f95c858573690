"""A program that uses the fleet: asks over HTTP, hears of the end over AMQP."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median, quantiles

import httpx
from virtfleet_common.client import FleetClient, FleetEvent
from virtfleet_local.layout import FleetFile

_DEADLINE = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """What one load measured. Latencies in seconds, from the request to the event of its end."""

    in_flight: int
    seconds: float
    latencies: list[float]

    @property
    def per_second(self) -> float:
        """Actions ended per second."""
        return len(self.latencies) / self.seconds

    @property
    def p50(self) -> float:
        """The median latency."""
        return median(self.latencies)

    @property
    def p95(self) -> float:
        """The latency that 95 % stay under."""
        return quantiles(self.latencies, n=20)[-1]


class Load:
    """One client with its event subscription."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._ends: dict[str, asyncio.Future[FleetEvent]] = {}
        self._early: dict[str, FleetEvent] = {}

    @classmethod
    @asynccontextmanager
    async def on(cls, fleet: FleetFile) -> AsyncIterator["Load"]:
        """A client of a running fleet."""
        headers = {"X-Auth-Token": fleet.token, "OpenStack-API-Version": "compute 2.87"}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=200)
        async with (
            httpx.AsyncClient(base_url=f"{fleet.api_url}/v2.1", headers=headers, limits=limits, timeout=60) as http,
            FleetClient(fleet.amqp_url) as client,
            client.subscribed("instance.*.end.*", "instance.*.error.*") as events,
        ):
            load = cls(http)
            reading = asyncio.create_task(load._read(events))
            try:
                yield load
            finally:
                reading.cancel()

    async def _read(self, events: AsyncIterator[FleetEvent]) -> None:
        async for event in events:
            waiting = self._ends.pop(event.data["request_id"], None)
            if waiting is None:
                self._early[event.data["request_id"]] = event
            elif not waiting.done():
                waiting.set_result(event)

    async def create(self, count: int) -> list[str]:
        """Create instances, one request each; returns their ids once they are active."""
        async def one(number: int) -> str:
            server = {"name": f"bench-{number}", "flavorRef": "1", "networks": "none"}
            response = await self._http.post("/servers", json={"server": server})
            await self._end(response)
            return str(response.json()["server"]["id"])

        return [await one(number) for number in range(count)]

    async def act(self, instance_id: str, body: dict[str, object]) -> float:
        """One action, from the request to its end. Returns the seconds it took."""
        began = time.perf_counter()
        await self._end(await self._http.post(f"/servers/{instance_id}/action", json=body))
        return time.perf_counter() - began

    async def _end(self, response: httpx.Response) -> None:
        response.raise_for_status()
        request_id = response.headers["x-openstack-request-id"]
        event = self._early.pop(request_id, None)
        if event is None:
            waiting = self._ends[request_id] = asyncio.get_running_loop().create_future()
            event = await asyncio.wait_for(waiting, _DEADLINE)
        if event.data["phase"] != "end":
            raise RuntimeError(f"an action failed under load: {event.data['fault']}")

    async def repeat(self, instances: list[str], in_flight: int, total: int, body: dict[str, object]) -> Run:
        """`total` actions, `in_flight` at once, each worker on an instance of its own."""
        latencies: list[float] = []

        async def worker(instance_id: str) -> None:
            for _ in range(total // in_flight):
                latencies.append(await self.act(instance_id, body))

        began = time.perf_counter()
        await asyncio.gather(*(worker(instance) for instance in instances[:in_flight]))
        return Run(in_flight, time.perf_counter() - began, latencies)
