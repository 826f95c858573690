"""A program that uses the fleet: asks over HTTP, hears of the end over AMQP."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from virtfleet_common.client import FleetClient, FleetEvent
from virtfleet_local.layout import FleetFile

from benchmarks.http import Answer, Connection, parsed

_DEADLINE = 120.0
Bodies = Callable[[int], list[dict[str, Any]]]
"""The actions of a round, by its number."""


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
    """One client with its event subscription; every worker has a connection of its own."""

    def __init__(self, fleet: FleetFile) -> None:
        self._fleet = fleet
        self._ends: dict[str, asyncio.Future[FleetEvent]] = {}
        self._early: dict[str, FleetEvent] = {}

    @classmethod
    @asynccontextmanager
    async def on(cls, fleet: FleetFile) -> AsyncIterator["Load"]:
        """A client of a running fleet."""
        async with (
            FleetClient(fleet.amqp_url) as client,
            client.subscribed("instance.*.end.*", "instance.*.error.*") as events,
        ):
            load = cls(fleet)
            reading = asyncio.create_task(load._read(events))
            try:
                yield load
            finally:
                reading.cancel()

    def _connection(self) -> Connection:
        headers = {"X-Auth-Token": self._fleet.token, "OpenStack-API-Version": "compute 2.87"}
        return Connection(f"{self._fleet.api_url}/v2.1", headers)

    async def _read(self, events: AsyncIterator[FleetEvent]) -> None:
        async for event in events:
            waiting = self._ends.pop(event.data["request_id"], None)
            if waiting is None:
                self._early[event.data["request_id"]] = event
            elif not waiting.done():
                waiting.set_result(event)

    async def make_flavors(self, names: Sequence[str]) -> None:
        """Flavors that differ in RAM alone; each one's id is its name."""
        async with self._connection() as api:
            for number, name in enumerate(names):
                size = {"vcpus": 1, "ram": 256 - 64 * number, "disk": 1}
                await api.post("/flavors", {"flavor": {"id": name, "name": name, **size}})

    async def create(self, count: int, flavor: str = "1") -> list[str]:
        """Create instances, one request each; returns their ids once they are active."""
        async with self._connection() as api:
            return [await self._create_one(api, flavor, number) for number in range(count)]

    async def _create_one(self, api: Connection, flavor: str, number: int) -> str:
        server = {"name": f"bench-{number}", "flavorRef": flavor, "networks": "none"}
        answer = await api.post("/servers", {"server": server})
        await self._end(answer)
        return str(parsed(answer)["server"]["id"])

    async def _end(self, answer: Answer) -> None:
        request_id = answer.headers["x-openstack-request-id"]
        event = self._early.pop(request_id, None) or await self._awaited(request_id)
        if event.data["phase"] != "end":
            raise RuntimeError(f"an action failed under load: {event.data['fault']}")

    async def _awaited(self, request_id: str) -> FleetEvent:
        waiting: asyncio.Future[FleetEvent] = asyncio.get_running_loop().create_future()
        self._ends[request_id] = waiting
        return await asyncio.wait_for(waiting, _DEADLINE)

    async def repeat(self, instances: list[str], in_flight: int, total: int, bodies: Bodies) -> Run:
        """`total` rounds, `in_flight` at once, each worker on an instance of its own; a round is the actions that
        `bodies` names for its number, one after the other."""
        latencies: list[float] = []

        async def worker(instance_id: str) -> None:
            async with self._connection() as api:
                for number in range(total // in_flight):
                    asked = time.perf_counter()
                    for body in bodies(number):
                        await self._end(await api.post(f"/servers/{instance_id}/action", body))
                    latencies.append(time.perf_counter() - asked)

        began = time.perf_counter()
        await asyncio.gather(*(worker(instance) for instance in instances[:in_flight]))
        return Run(in_flight, time.perf_counter() - began, latencies)
