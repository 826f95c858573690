"""What tests say and see of a running fleet: commands, events, records, guests, and how processes die."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Self
from uuid import uuid4

import httpx
import psutil  # type: ignore[import-untyped]
from virtfleet_common.client import FleetClient, FleetEvent
from virtfleet_common.errors import NotFound
from virtfleet_common.messages import CreateInstance, DeleteInstance, UnlockInstance
from virtfleet_common.records import ActionRecord, Host, Instance
from virtfleet_common.records.volume import Volume
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import VmState
from virtfleet_common.store import InstanceQuery, Store
from virtfleet_local import hosts as machines
from virtfleet_local.fleet import LocalFleet

DEADLINE = 30.0
"""Seconds a test waits for what must happen; only a failure takes so long."""


class World:
    """One fleet, seen by a member's program and by the tests' own look into the database."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.fleet = fleet
        self.failpoints = fleet.data / "failpoints"
        self.store = Store.connect(CommonSettings(mongodb_url=fleet.file.mongodb_url))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for old in self.failpoints.iterdir():
            old.unlink(missing_ok=True)
        self.client = await self._stack.enter_async_context(FleetClient(self.fleet.file.member_amqp_url))
        self.http = await self._stack.enter_async_context(
            httpx.AsyncClient(base_url=self.fleet.file.api_url, timeout=DEADLINE, trust_env=False)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._mend()
            await self._delete_all()
        finally:
            await self._stack.aclose()
            self.store.close()

    async def _mend(self) -> None:
        """Whatever a test that failed half way has left broken, the next one finds whole."""
        for laid in self.failpoints.iterdir():
            if laid.suffix == ".taken":
                self.release(laid.name.rsplit(".", 2)[0])
            elif laid.suffix != ".release":
                laid.unlink(missing_ok=True)
        await asyncio.to_thread(self.fleet.database.start)
        await asyncio.to_thread(self.fleet.broker.start)
        for service in self.fleet.services():
            self.fleet.process(service.name).signal(signal.SIGCONT)
            self.fleet.start_service(service.name, wait=False)

    async def _delete_all(self) -> None:
        for instance in await self.store.instances.find(InstanceQuery()):
            with suppress(NotFound):  # just deleted
                await self.client.command(DeleteInstance(instance_id=instance.id), timeout=DEADLINE)
        async for _ in polling("every instance to be deleted"):
            if not await self.store.instances.find(InstanceQuery()):
                break
        await everything_is_delivered(self)  # what they held is given back too

    async def ask(self, method: str, path: str, body: Any = None, who: str = "member", **more: Any) -> httpx.Response:
        """One request over HTTP, as `member`, `other` (of another project), `admin`, or nobody ("")."""
        known = self.fleet.file
        tokens = {"member": known.member_token, "other": known.other_member_token, "admin": known.token}
        headers = {"X-Auth-Token": tokens[who]} if who else {}
        return await self.http.request(method, path, json=body, headers={**headers, **more.pop("headers", {})}, **more)

    async def act(self, instance_id: str, body: Any, who: str = "member") -> httpx.Response:
        """One action over HTTP."""
        return await self.ask("POST", f"/v2.1/servers/{instance_id}/action", body, who)

    async def create(self, name: str = "guest", **more: Any) -> Instance:
        """A guest without image or network, created and active."""
        async with self.story() as story:
            accepted = await self.client.command(CreateInstance(name=name, flavor="m1.tiny", **more))
            await story.ends(accepted.action_id)
        instance = await self.instance(accepted.instance_ids[0])
        assert instance.vm_state is VmState.ACTIVE, instance.fault
        return instance

    async def volume(self, instance: Instance, **source: Any) -> Volume:
        """A volume of 8 MiB for the instance's project: a file of its own, or what lies at `source`."""
        id_ = str(uuid4())
        path = self.fleet.data / f"volume-{id_}"
        if not source:
            path.write_bytes(bytes(8 * 1024**2))
        body = {"id": id_, "name": "data", "size": 1, "virtfleet:source": source or {"type": "file", "path": str(path)}}
        made = await self.ask("POST", f"/volume/v3/{instance.project_id}/volumes", {"volume": body}, "admin")
        assert made.status_code == 202, made.text
        return await self.stored_volume(id_)

    async def stored_volume(self, volume_id: str) -> Volume:
        """The volume's record."""
        found = await self.store.volumes.get(volume_id)
        assert found is not None
        return found

    async def instance(self, instance_id: str) -> Instance:
        """The record."""
        found = await self.store.instances.get(instance_id)
        assert found is not None
        return found

    async def action(self, action_id: str) -> ActionRecord:
        """An action's history, once it says that the action has finished, and nothing of it is still to be written."""
        async for _ in polling(f"the record of {action_id} to be whole"):
            found = await self.store.actions.get(action_id)
            if found is not None and found.finish is not None and not await self._is_untold(found):
                break
        whole = await self.store.actions.get(action_id)
        assert whole is not None
        return whole

    async def _is_untold(self, action: ActionRecord) -> bool:
        """Whether something of an action's history is still in its instance's outbox."""
        instance = await self.store.instances.get(action.instance_id)
        return instance is not None and any(effect.get("action_id") == action.id for effect in instance.outbox)

    async def host(self, name: str = "host-1") -> Host:
        """A host's record."""
        found = await self.store.hosts.get(name)
        assert found is not None
        return found

    def arm(self, point: str, what: str = "kill") -> None:
        """Lay down a failure."""
        (self.failpoints / point).write_text(what)

    async def taken(self, point: str) -> None:
        """Wait until a failure that was laid down was met."""
        async for _ in polling(f"{point} to be reached", every=0.01):
            if not (self.failpoints / point).exists():
                return

    def release(self, point: str) -> None:
        """Let what hangs at a point go on."""
        (self.failpoints / f"{point}.release").touch()

    def guests(self, instance_id: str) -> dict[int, psutil.Process]:
        """The QEMU processes of an instance, by pid, on any host."""
        return {process.pid: process for process, command in self._guests() if instance_id in command}

    def places(self, instance_id: str) -> list[str]:
        """The hosts on which an instance has a QEMU process."""
        commands = [command for _, command in self._guests() if instance_id in command]
        return [host for host in self.fleet.file.hosts for command in commands if f"/{host}/" in command]

    def _guests(self) -> Iterator[tuple[psutil.Process, str]]:
        """Every QEMU process and its command line; one that ends meanwhile is none."""
        for process in machines.guests(self.fleet.data):
            with suppress(psutil.NoSuchProcess, FileNotFoundError):
                yield process, " ".join(process.cmdline())

    @asynccontextmanager
    async def story(self) -> AsyncIterator["Story"]:
        """What is told of all instances, from now on."""
        async with self.client.subscribed("instance.#") as events:
            yield Story(self, events)

    async def death_of(self, service: str, do: Callable[[], Any]) -> Any:
        """Do something, and return its result when the service has died of it."""
        async with self.death(service):
            return await do()

    @asynccontextmanager
    async def death(self, service: str) -> AsyncIterator[None]:
        """What is begun in this context kills the service; it is dead when the context is left."""
        process = self.process(service)
        yield
        await asyncio.wait_for(asyncio.to_thread(process.wait), DEADLINE)

    def process(self, service: str) -> psutil.Process:
        """The process of a service that runs."""
        pid = self.fleet.process(service).pid
        assert pid is not None, f"{service} does not run"
        return psutil.Process(pid)


class Story:
    """The events of instances, in the order of their arrival, copies left out."""

    def __init__(self, world: World, events: AsyncIterator[FleetEvent]) -> None:
        self._world = world
        self._events = events
        self.told: dict[str, FleetEvent] = {}

    async def ends(self, action_id: str) -> FleetEvent:
        """The end or error of an action."""
        return await self.hears(lambda event: event.data.get("request_id") == action_id and phase(event) in ENDS)

    async def begins(self, action_id: str) -> FleetEvent:
        """The start of an action. It is published by another service than the end, and may come after it."""
        for event in self.told.values():
            if (event.data.get("request_id"), phase(event)) == (action_id, "start"):
                return event
        return await self.hears(lambda one: (one.data.get("request_id"), phase(one)) == (action_id, "start"))

    async def reads_on(self, instance_id: str) -> None:
        """Read everything told of an instance up to a mark set now: what did not come by then does not come."""
        mark = await self._world.client.command(UnlockInstance(instance_id=instance_id))
        await self.hears(lambda event: event.data.get("request_id") == mark.action_id)

    def endings(self, action_id: str) -> list[str]:
        """How an action ended, as often as it did."""
        return [
            phase(event)
            for event in self.told.values()
            if event.data.get("request_id") == action_id and phase(event) in ENDS
        ]

    async def hears(self, wanted: Callable[[FleetEvent], bool]) -> FleetEvent:
        """The next event that is wanted."""
        async with asyncio.timeout(DEADLINE):
            async for event in self._events:
                is_copy = event.id in self.told
                self.told[event.id] = event
                if wanted(event) and not is_copy:
                    return event
        raise AssertionError("the events ended")


ENDS = frozenset({"end", "error"})


def phase(event: FleetEvent) -> str:
    """`start`, `end` or `error`."""
    return str(event.data["phase"])


async def everything_is_delivered(world: World) -> None:
    """No instance is at work, and nothing that was committed is still to be told."""
    async for _ in polling("every outbox to be empty"):
        instances = await world.store.instances.find(InstanceQuery())
        is_idle = not any(instance.action or instance.task_state for instance in instances)
        if is_idle and not await world.store.instances.find_undelivered(age=-DEADLINE):
            return


async def polling(what: str, every: float = 0.05) -> AsyncIterator[None]:
    """Look again and again until the loop is left; fails when that takes too long. For what no event announces."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE
    while loop.time() < deadline:
        yield
        await asyncio.sleep(every)
    raise TimeoutError(f"waited in vain for {what}")
