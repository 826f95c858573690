"""What the story acts through: commands over AMQP and HTTP, events as they arrive, and waiting until it is so."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from virtfleet_common.client import FleetClient, FleetEvent
from virtfleet_common.messages import CreateInstance

from virtfleet_local.demo import console_text, host_side
from virtfleet_local.demo.host_side import RunningGuest
from virtfleet_local.demo.screen import Screen
from virtfleet_local.demo.sights import NotSeenError
from virtfleet_local.fleet import LocalFleet

DEADLINE = 120.0
"""Seconds that anything may take; on a machine with nothing else to do, the longest wait is about ten."""
_LOOK_AGAIN = 0.2
_MICROVERSION = "compute 2.87"
ENDS = frozenset({"end", "error"})
T = TypeVar("T")


class Tale:
    """The fleet's events: shown as they arrive, and kept."""

    def __init__(self, screen: Screen) -> None:
        self.told: list[FleetEvent] = []
        self._screen = screen
        self._news = asyncio.Condition()
        self._lost: Exception | None = None

    async def follow(self, arriving: AsyncIterator[FleetEvent]) -> None:
        """Read events for ever. A second copy of one (the same id) is not told again."""
        try:
            async for event in arriving:
                if all(event.id != known.id for known in self.told):
                    self._screen.event(event)
                    async with self._news:
                        self.told.append(event)
                        self._news.notify_all()
        except Exception as lost:  # the edge of a loop: whoever waits for an event is told
            async with self._news:
                self._lost = lost
                self._news.notify_all()

    async def end_of(self, action_id: str) -> FleetEvent:
        """The event that ends an action. Raises NotSeenError for an end in error, or when none comes."""
        ending = await self.ending_of(action_id)
        if ending.data["phase"] == "error":
            raise NotSeenError(f"{ending.key} says: {ending.data['fault']}")
        return ending

    async def ending_of(self, action_id: str) -> FleetEvent:
        """The event that ends an action, well or in error. Raises NotSeenError when none comes."""
        return await self._first(f"the end of action {action_id}", lambda: self.endings(action_id))

    async def heard(self, key: str, since: int = 0) -> FleetEvent:
        """The first event of this key, but for the first `since` of all. Raises NotSeenError when none comes."""
        return await self._first(key, lambda: [event for event in self.told[since:] if event.key == key])

    async def _first(self, what: str, found: Callable[[], list[FleetEvent]]) -> FleetEvent:
        try:
            async with asyncio.timeout(DEADLINE), self._news:
                await self._news.wait_for(lambda: self._lost or found())
        except TimeoutError:
            raise NotSeenError(f"the events did not tell of {what} within {DEADLINE:.0f} s") from None
        if self._lost:
            raise NotSeenError(f"the events broke off: {self._lost}") from self._lost
        return found()[0]

    def endings(self, action_id: str) -> list[FleetEvent]:
        """The ends of an action that were told so far; there should be one."""
        return [event for event in self.told if _is_of(event, action_id) and event.data["phase"] in ENDS]

    def begun(self) -> list[str]:
        """Every action that was told to have started."""
        return [event.data["request_id"] for event in self.told if event.data.get("phase") == "start"]


def _is_of(event: FleetEvent, action_id: str) -> bool:
    return event.data.get("request_id") == action_id


@dataclass(slots=True)
class Guest:
    """A guest of the story, and where it was put."""

    name: str
    id: str
    host: str


@dataclass(slots=True)
class Stage:
    """The running fleet as a member of a project uses it, an administrator's look at it, and the tale of its events."""

    fleet: LocalFleet
    client: FleetClient
    http: httpx.AsyncClient
    screen: Screen
    tale: Tale
    guests: dict[str, Guest] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The folder of the fleet."""
        return self.fleet.data

    async def create(self, name: str, image: str, **more: Any) -> Guest:
        """Ask for a guest over AMQP, and wait until it is active."""
        self.screen.says(f"instance.create: {name}, image {image}, flavor m1.tiny")
        accepted = await self.client.command(CreateInstance(name=name, image=image, flavor="m1.tiny", **more))
        end = await self.tale.end_of(accepted.action_id)
        demand(end.data["after"]["vm_state"] == "active", f"{name} is {end.data['after']}")
        self.guests[name] = Guest(name, accepted.instance_ids[0], end.data["host"])
        return self.guests[name]

    async def post(self, path: str, body: Mapping[str, Any]) -> str:
        """A request of the project's member; returns the action's id. Raises NotSeenError when it is refused."""
        answer = await self.http.post(path, json=body, headers={"X-Auth-Token": self.fleet.file.member_token})
        return _accepted(answer)

    async def act(self, guest: Guest, body: Mapping[str, Any], *, as_admin: bool = False) -> str:
        """An action on a guest, by the project's member or an administrator; returns the action's id."""
        token = self.fleet.file.token if as_admin else self.fleet.file.member_token
        path = f"/servers/{guest.id}/action"
        self.screen.says(f"POST /v2.1{path} {json.dumps(body)}")
        return _accepted(await self.http.post(path, json=body, headers={"X-Auth-Token": token}))

    async def make_flavor(self, size: Mapping[str, Any]) -> str:
        """An administrator makes a flavor; returns its id."""
        headers = {"X-Auth-Token": self.fleet.file.token}
        answer = await self.http.post("/flavors", json={"flavor": size}, headers=headers)
        return str(answer.raise_for_status().json()["flavor"]["id"])

    async def make_group(self, policy: str) -> str:
        """The project's member makes a server group; returns its id."""
        headers = {"X-Auth-Token": self.fleet.file.member_token, "OpenStack-API-Version": _MICROVERSION}
        body = {"server_group": {"name": "demo", "policy": policy}}
        answer = await self.http.post("/os-server-groups", json=body, headers=headers)
        return str(answer.raise_for_status().json()["server_group"]["id"])

    async def delete(self, path: str) -> str:
        """As `post`."""
        return _accepted(await self.http.delete(path, headers={"X-Auth-Token": self.fleet.file.member_token}))

    async def get(self, path: str) -> Any:
        """What an administrator reads; None for what is not found."""
        headers = {"X-Auth-Token": self.fleet.file.token, "OpenStack-API-Version": _MICROVERSION}
        answer = await self.http.get(path, headers=headers)
        return None if answer.status_code == httpx.codes.NOT_FOUND else answer.raise_for_status().json()

    async def console(self, guest: Guest) -> str:
        """The guest's console, as the API gives it to its owner; empty while its host cannot be asked."""
        answer = await self.http.post(
            f"/servers/{guest.id}/action",
            json={"os-getConsoleOutput": {"length": -1}},
            headers={"X-Auth-Token": self.fleet.file.member_token},
        )
        return str(answer.json()["output"]) if answer.is_success else ""

    async def console_with(self, guest: Guest, what: str, is_there: Callable[[str], bool]) -> str:
        """The guest's console once `is_there` says that it shows `what`."""

        async def look() -> str:
            return await self.console(guest)

        return await self.until(f"{what} on the console of {guest.name}", look, is_there)

    async def ready(self, guest: Guest, boots: int) -> str:
        """The guest's console once it has booted so often, and its latest boot has come to its end."""

        def is_ready(text: str) -> bool:
            return console_text.is_ready_after(text, boots)

        return await self.console_with(guest, f"boot {boots} being ready", is_ready)

    async def steps_of(self, guest: Guest, action_id: str) -> dict[str, Any]:
        """The history of a finished action: its steps by name."""

        async def look() -> list[Any]:
            action = await self.get(f"/servers/{guest.id}/os-instance-actions/{action_id}")
            return list(action["instanceAction"]["events"]) if action else []

        steps = await self.until(
            f"the history of {action_id}", look, lambda seen: bool(seen) and all(step["finish_time"] for step in seen)
        )
        return {step["event"]: step for step in steps}

    def running(self, guest: Guest) -> RunningGuest:
        """The guest's one process. Raises NotSeenError unless there is exactly one."""
        found = host_side.running(self.data, guest.id)
        if len(found) != 1:
            raise NotSeenError(f"{guest.name} should run once, and runs as {found}")
        return found[0]

    async def until(
        self, what: str, look: Callable[[], Awaitable[T]], is_so: Callable[[T], bool], every: float = _LOOK_AGAIN
    ) -> T:
        """Look again and again until `is_so`: for what no event announces. Raises NotSeenError in the end."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DEADLINE
        while not is_so(seen := await look()):
            if loop.time() > deadline:
                raise NotSeenError(f"waited {DEADLINE:.0f} s for {what}; the last look showed: {seen!r}")
            await asyncio.sleep(every)
        return seen


@dataclass(frozen=True, slots=True)
class Chapter:
    """A title, what to look for, and what happens."""

    title: str
    what: str
    play: Callable[[Stage], Awaitable[None]]


def demand(is_so: bool, what: str) -> None:
    """Raises NotSeenError unless it is so."""
    if not is_so:
        raise NotSeenError(what)


def _accepted(answer: httpx.Response) -> str:
    if not answer.is_success:
        raise NotSeenError(f"{answer.request.method} {answer.request.url.path} was refused: {answer.text}")
    return str(answer.headers["x-openstack-request-id"])
