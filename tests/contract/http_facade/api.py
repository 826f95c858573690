"""The application under test, and what the tests say to it and see of it.

The broker's side is in memory: what the acceptor publishes goes nowhere, and events come from the test.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
from virtfleet_api.accept import Acceptor
from virtfleet_api.app import make_app
from virtfleet_api.auth import token_hash
from virtfleet_api.sources import FleetEvent
from virtfleet_common.bus import Handler, Outgoing, QueueSpec
from virtfleet_common.clock import SystemClock
from virtfleet_common.errors import BadRequest
from virtfleet_common.messages import ExplainPlacement, PlacementExplained
from virtfleet_common.quota import amounts_of
from virtfleet_common.records import (
    Flavor,
    Image,
    Instance,
    Resources,
    Token,
)
from virtfleet_common.relay import Relay
from virtfleet_common.settings import ApiSettings
from virtfleet_common.states import HostState, PowerState, VmState
from virtfleet_common.store import Store

CHECKSUM = "sha256:" + "0" * 64
LATEST = {"OpenStack-API-Version": "compute 2.87"}


class Deaf:
    """A bus that confirms everything and delivers nothing."""

    is_connected = True

    async def publish(self, message: Outgoing) -> None:
        """Confirmed."""

    async def rebuild(self) -> None:
        """Nothing to rebuild."""

    @asynccontextmanager
    async def consume(self, queue: QueueSpec, handler: Handler) -> AsyncIterator[None]:
        """Nothing comes."""
        yield


@dataclass
class Radio:
    """A source of events that the test speaks into."""

    listeners: list[tuple[Sequence[str], asyncio.Queue[FleetEvent]]] = field(default_factory=list)
    tuned_in: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def subscribe(self, patterns: Sequence[str]) -> AsyncIterator[AsyncIterator[FleetEvent]]:
        """Everything said from now on."""
        listener: tuple[Sequence[str], asyncio.Queue[FleetEvent]] = (patterns, asyncio.Queue())
        self.listeners.append(listener)
        self.tuned_in.set()

        async def arriving() -> AsyncIterator[FleetEvent]:
            while True:
                yield await listener[1].get()

        try:
            yield arriving()
        finally:
            self.listeners.remove(listener)

    def say(self, key: str, data: dict[str, Any]) -> None:
        """Tell every listener."""
        event = SimpleNamespace(id=uuid4().hex, type=f"virtfleet.{key}", key=key, data=data, time=datetime.now(UTC))
        for _, queue in self.listeners:
            queue.put_nowait(event)


class Diary:
    """Console logs that say which instance they are of."""

    async def output(self, instance: Instance, length: int | None) -> str:
        """Two lines, or the last."""
        lines = [f"booting {instance.name}", "ready"]
        return "\n".join(lines[-length:] if length else lines) + "\n"


@dataclass
class Oracle:
    """Placements that are known beforehand: one guest fits, and there is one flavor that nobody knows."""

    asked: list[ExplainPlacement] = field(default_factory=list)

    async def explain(self, question: ExplainPlacement) -> PlacementExplained:
        """The answer."""
        if question.flavor == "unheard-of":
            raise BadRequest("Flavor unheard-of could not be found.", rule="placement")
        self.asked.append(question)
        return PlacementExplained(hosts=["best", None], explanations=[{"chosen": "best"}, {"refused": "all"}])


class Api:
    """The application and what stands behind it, with a project, its users and a host of its own per test."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.radio = Radio()
        self.oracle = Oracle()
        settings = ApiSettings(max_limit=100)
        acceptor = Acceptor(store, Relay(store, Deaf(), "virtfleet/api"), SystemClock(), settings)
        self.app = make_app(store, acceptor, settings, events=self.radio, consoles=Diary(), placements=self.oracle)
        self.project = uuid4().hex
        self.host = f"host-{uuid4().hex[:8]}"
        self.tokens: dict[str, str] = {}
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://fleet.example")

    async def set_up(self) -> None:
        """Users of every role, another project's member, a flavor, an image, a host."""
        for role in ("admin", "member", "reader"):
            self.tokens[role] = await self.token(self.project, role)
        self.tokens["stranger"] = await self.token(uuid4().hex, "member")
        now = datetime.now(UTC)
        self.flavor = Flavor(id=uuid4().hex, name=f"tiny-{uuid4().hex[:6]}", vcpus=1, ram_mb=64, disk_gb=1)
        self.image = Image(
            id=str(uuid4()), name=f"linux-{uuid4().hex[:6]}", location="/i", checksum=CHECKSUM,
            created_at=now, updated_at=now,
        )  # fmt: skip
        await self.store.flavors.add(self.flavor)
        await self.store.images.add(self.image)
        room = Resources(vcpus=8, ram_mb=1024, disk_gb=10)
        facts = {"total": room.model_dump(), "state": HostState.UP, "is_enabled": True}
        await self.store.hosts.register(self.host, uuid=str(uuid4()), limits=room, facts=facts)

    async def token(self, project: str, role: str, expires_at: datetime | None = None) -> str:
        """A new token."""
        token = uuid4().hex
        await self.store.tokens.add(
            Token(
                id=token_hash(token),
                user_id=f"id-{role}",
                user_name=role,
                project_id=project,
                project_name=f"name-{project}",
                roles=[role],
                expires_at=expires_at,
            )
        )
        return token

    async def instance(self, **fields: Any) -> Instance:
        """An active instance in the record."""
        now = fields.pop("created_at", datetime.now(UTC))
        values: dict[str, Any] = {
            "id": str(uuid4()), "name": "guest", "project_id": self.project, "user_id": "u", "vm_state": VmState.ACTIVE,
            "power_state": PowerState.RUNNING, "host": self.host, "epoch": 1, "flavor": self.flavor,
            "image": self.image, "created_at": now, "updated_at": now, "launched_at": now,
        }  # fmt: skip
        made = await self.store.instances.insert(Instance(**{**values, **fields}))
        if made.vm_state is not VmState.DELETED:
            await self.store.quotas.reserve(made.project_id, [made.id], amounts_of(made.flavor), defaults={})
        stored = await self.store.instances.get(made.id)
        assert stored is not None
        return stored

    async def ask(
        self, method: str, path: str, body: Any = None, *, who: str = "member", version: str | None = None, **more: Any
    ) -> httpx.Response:
        """One request."""
        headers = {"X-Auth-Token": self.tokens[who]} if who else {}
        if version:
            headers["OpenStack-API-Version"] = f"compute {version}"
        return await self.http.request(method, path, json=body, headers=headers, **more)

    async def act(
        self, instance: Instance, body: Any, who: str = "member", version: str | None = None
    ) -> httpx.Response:
        """One action."""
        return await self.ask("POST", f"/v2.1/servers/{instance.id}/action", body, who=who, version=version)


class Listener:
    """A client of the event stream, at the level of ASGI, because httpx's transport waits for an answer's end."""

    def __init__(self, api: Api, who: str, query: str = "") -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._gone = asyncio.Event()
        scope = {
            "type": "http", "method": "GET", "path": "/v2.1/events", "raw_path": b"", "query_string": query.encode(),
            "headers": [(b"x-auth-token", api.tokens[who].encode())], "scheme": "http", "root_path": "",
            "http_version": "1.1", "server": ("fleet", 80), "client": ("me", 1), "asgi": {"version": "3.0"},
        }  # fmt: skip
        self.task = asyncio.create_task(api.app(scope, self._receive, self.sent.put))  # type: ignore[arg-type]

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> dict[str, Any]:
        """The next event."""
        while True:
            message = await asyncio.wait_for(self.sent.get(), 5)
            for line in message.get("body", b"").decode().splitlines():
                if line.startswith("data: "):
                    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                    return event

    async def leave(self) -> None:
        """Hang up."""
        self._gone.set()
        await asyncio.wait_for(self.task, 5)


def new_server(api: Api, **fields: Any) -> dict[str, Any]:
    return {"server": {"name": "new", "flavorRef": api.flavor.id, "imageRef": api.image.id, **fields}}


def error_of(answer: httpx.Response) -> tuple[int, str, str]:
    """Status, the one key of the body, and the message below it."""
    ((key, error),) = answer.json().items()
    assert error["code"] == answer.status_code
    return answer.status_code, key, error["message"]
