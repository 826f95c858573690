"""Nothing destructive follows from doubt: an agent that is not sure stays outside, and its guests run on."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
from virtfleet_common.records import Instance
from virtfleet_common.states import HostState

from tests.world import World, polling

pytestmark = [pytest.mark.qemu, pytest.mark.fleet]


@pytest.fixture
async def guest(pair: World) -> AsyncIterator[Instance]:
    """A running guest whose host's agent has stopped; what was done to the agent's files is undone afterwards."""
    instance = await pair.create()
    await asyncio.to_thread(pair.fleet.stop_service, str(instance.host))
    yield instance
    identity = pair.fleet.data / "hosts" / str(instance.host) / "identity.json"
    if not identity.exists():
        identity.with_suffix(".wiped").rename(identity)


async def start(world: World, instance: Instance, **env: str) -> None:
    """Start the agent with another environment."""
    added = {f"VIRTFLEET_{name}": value for name, value in env.items()}
    await asyncio.to_thread(world.fleet.start_service, str(instance.host), added, wait=False)


async def refuses(world: World, instance: Instance, why: str) -> None:
    """The agent ends by itself and says why; the guest runs on, on a host that is not lost."""
    agent = world.fleet.process(str(instance.host))
    async for _ in polling("the agent to end"):
        if not agent.is_running():
            break
    assert why in (world.fleet.data / "services" / f"{instance.host}.log").read_text()
    assert world.places(instance.id) == [instance.host]


async def comes_back(world: World, instance: Instance, guests: set[int]) -> None:
    """The agent starts as it should, and finds its guest as it was."""
    before = (await world.host(str(instance.host))).boot_id
    await start(world, instance)
    async for _ in polling("the host to be registered anew"):
        if (await world.host(str(instance.host))).boot_id != before:
            break
    async with world.client.subscribed(f"host.{instance.host}.heartbeat") as events, asyncio.timeout(30):
        async for event in events:
            if event.data["guests"] is not None:
                break
    assert set(world.guests(instance.id)) == guests


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"HOST": "renamed"}, "and this agent is called renamed"),
        ({"DATABASE": "elsewhere"}, "and this is the database of fleet"),
    ],
    ids=["renamed", "foreign database"],
)
async def test_an_agent_that_is_told_to_be_another_refuses(
    pair: World, guest: Instance, env: dict[str, str], why: str
) -> None:
    guests = set(pair.guests(guest.id))
    await start(pair, guest, **env)
    await refuses(pair, guest, why)
    await comes_back(pair, guest, guests)


async def test_an_agent_whose_identity_was_wiped_refuses(pair: World, guest: Instance) -> None:
    guests = set(pair.guests(guest.id))
    identity = pair.fleet.data / "hosts" / str(guest.host) / "identity.json"
    identity.rename(identity.with_suffix(".wiped"))
    await start(pair, guest)
    await refuses(pair, guest, "identity.json is gone")
    assert not identity.exists()
    identity.with_suffix(".wiped").rename(identity)
    await comes_back(pair, guest, guests)


async def test_a_host_that_cannot_list_its_guests_stays_outside_until_it_can(pair: World, guest: Instance) -> None:
    guests, before = set(pair.guests(guest.id)), await pair.host(str(guest.host))
    (other,) = set(pair.fleet.file.hosts) - {guest.host}
    pair.fleet.process(other).signal(signal.SIGSTOP)  # it is not its listing that is to hang
    pair.arm("hypervisor.list_guests", "hang")
    await start(pair, guest)
    await pair.taken("hypervisor.list_guests")
    pair.fleet.process(other).signal(signal.SIGCONT)
    assert (await pair.host(str(guest.host))).boot_id == before.boot_id
    pair.release("hypervisor.list_guests")
    async for _ in polling("the host to be registered anew"):
        now = await pair.host(str(guest.host))
        if now.boot_id != before.boot_id:
            break
    assert (now.state, set(pair.guests(guest.id))) == (HostState.UP, guests)
