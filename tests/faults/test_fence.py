"""A lost host whose fence is a program: nothing starts elsewhere before the host is seen off, or an admin says so."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from virtfleet_common.records import Instance
from virtfleet_local.fleet import LocalFleet

from tests.conftest import brittle
from tests.faults.test_kill_evacuation import SWIFT, all_are_up, lives_elsewhere
from tests.world import DEADLINE, World

pytestmark = pytest.mark.fleet
PROGRAM = """#!/bin/sh
cat $(dirname $0)/power
"""


@dataclass(frozen=True)
class Socket:
    """A fleet whose sockets are switched by a program, which says of each what stands in a file."""

    fleet: LocalFleet
    power: Path


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Socket]:
    """Two simulated hosts, soon lost."""
    folder = tmp_path_factory.mktemp("socket")
    program, power = folder / "fence", folder / "power"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    fence = {
        "VIRTFLEET_FENCING": "command",
        "VIRTFLEET_FENCE_COMMAND": json.dumps([str(program), "{action}", "{host}"]),
        "VIRTFLEET_FENCE_OFF_TIMEOUT": "0.5",
        "VIRTFLEET_FENCE_STATUS_INTERVAL": "0.1",
        "VIRTFLEET_FENCE_RETRY": "0.5",
    }
    with brittle(folder, 2, "test", **SWIFT, **fence) as fleet:
        yield Socket(fleet, power)


@pytest.fixture
async def world(socket: Socket) -> AsyncIterator[World]:
    """The fleet as a program sees it, all its hosts up, and the power on."""
    socket.power.write_text("Status: ON\n")
    async with World(socket.fleet) as found:
        await all_are_up(found)
        yield found


async def test_a_guest_waits_until_its_host_is_seen_off(world: World, socket: Socket) -> None:
    guest = await world.create()
    lost = str(guest.host)
    async with world.client.subscribed("host.*.fence_failed", "host.*.fenced") as events, asyncio.timeout(DEADLINE):
        await asyncio.to_thread(world.fleet.kill_host, lost)
        failed = await anext(events)
        assert (failed.key, failed.data["output"].splitlines()[-1]) == (f"host.{lost}.fence_failed", "Status: ON")
        assert await is_at_rest(world, guest)
        socket.power.write_text("Status: OFF\n")
        fenced = await anext(events)
        assert (fenced.key, fenced.data["detail"]) == (f"host.{lost}.fenced", "its status is: Status: OFF")
    await lives_elsewhere(world, guest)


async def test_the_word_of_an_admin_is_enough(world: World) -> None:
    guest = await world.create()
    lost = str(guest.host)
    async with world.client.subscribed("host.*.fence_failed", "host.*.fenced") as events, asyncio.timeout(DEADLINE):
        await asyncio.to_thread(world.fleet.kill_host, lost)
        await anext(events)
        seen = (await world.ask("GET", f"/fencing/{lost}", who="admin")).json()["host"]
        assert (seen["fence"], seen["attempts"]["error"]) == (None, f"host {lost} was not seen off")
        attested = await world.ask("POST", f"/fencing/{lost}/attest", {"reason": "pulled the plug"}, who="admin")
        assert attested.json()["host"]["fence"]["proof"] == "attested"
        fenced = await anext(events)
        assert (fenced.key, fenced.data["proof"]) == (f"host.{lost}.fenced", "attested")
    await lives_elsewhere(world, guest)


async def is_at_rest(world: World, guest: Instance) -> bool:
    now = await world.instance(guest.id)
    return (now.host, now.task_state, now.move) == (guest.host, None, None)
