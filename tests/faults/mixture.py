"""Fifty actions of five kinds at once, each on an instance of its own, and what every instance must be afterwards."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from virtfleet_common.client import FleetClient
from virtfleet_common.errors import Unroutable
from virtfleet_common.messages import (
    Command,
    CommandAccepted,
    CreateInstance,
    DeleteInstance,
    RebootInstance,
    StartInstance,
    StopInstance,
)
from virtfleet_common.states import PowerState, VmState

from tests.world import DEADLINE, World, polling

ACTIVE = VmState.ACTIVE, PowerState.RUNNING
STOPPED = VmState.STOPPED, PowerState.SHUTDOWN
GONE = VmState.DELETED, PowerState.NOSTATE


@dataclass(frozen=True)
class Planned:
    """A command to come, and the vm_state and power_state that it leads to."""

    command: Command
    leads_to: tuple[VmState, PowerState]


async def prepare(world: World, each: int) -> list[Planned]:
    """`each` creates, hard reboots, stops, starts and deletes, in turns, with the instances they need."""
    ready = await crowd_of(world, 4 * each)
    rebooted, running, stopped, doomed = (ready[n * each : (n + 1) * each] for n in range(4))
    await all_end(world, [StopInstance(instance_id=id_) for id_ in stopped])
    kinds = [
        [Planned(CreateInstance(name=f"new-{n}", flavor="m1.tiny"), ACTIVE) for n in range(each)],
        [Planned(RebootInstance(instance_id=id_, type="HARD"), ACTIVE) for id_ in rebooted],
        [Planned(StopInstance(instance_id=id_), STOPPED) for id_ in running],
        [Planned(StartInstance(instance_id=id_), ACTIVE) for id_ in stopped],
        [Planned(DeleteInstance(instance_id=id_), GONE) for id_ in doomed],
    ]
    return [planned for turn in zip(*kinds, strict=True) for planned in turn]


async def crowd_of(world: World, count: int) -> Sequence[str]:
    """So many active instances."""
    accepted = await world.client.command(CreateInstance(name="crowd", flavor="m1.tiny", max_count=count))
    async for _ in polling("the instances to be active"):
        instances = [await world.instance(id_) for id_ in accepted.instance_ids]
        if all(instance.action is None and not instance.outbox for instance in instances):
            break
    assert {instance.vm_state for instance in instances} == {VmState.ACTIVE}, [one.fault for one in instances]
    return accepted.instance_ids


async def send(client: FleetClient, command: Command) -> CommandAccepted:
    """Send a command and insist on an answer, as a program does that has a broker to wait for."""
    id_ = uuid4().hex
    async with asyncio.timeout(DEADLINE):
        async for _ in polling("somebody to take commands"):
            with suppress(Unroutable):  # the broker is back before the service that takes commands
                return await client.command(command, message_id=id_, timeout=DEADLINE)
    raise AssertionError


async def send_all(world: World, planned: Sequence[Planned]) -> Mapping[str, Planned]:
    """Send them all at once. Returns them by action id, when all were accepted."""
    accepted = await asyncio.gather(*(send(world.client, one.command) for one in planned))
    return {answer.action_id: one for answer, one in zip(accepted, planned, strict=True)}


async def all_end(world: World, commands: Sequence[Command]) -> None:
    """Send commands, and wait until each action has ended well."""
    accepted = await asyncio.gather(*(send(world.client, command) for command in commands))
    for answer in accepted:
        assert (await world.action(answer.action_id)).result == "Success"


async def all_came_true(world: World, sent: Mapping[str, Planned]) -> None:
    """Every action succeeded, and its instance is what it should be."""
    for action_id, planned in sent.items():
        record = await world.action(action_id)
        assert record.result == "Success", record
        instance = await world.instance(record.instance_id)
        assert (instance.vm_state, instance.power_state) == planned.leads_to, instance


async def steps_done(world: World) -> int:
    """How many steps every executor of the fleet says it has worked through since it started."""
    done = 0.0
    for service in ("scheduler", *world.fleet.file.hosts):
        answer = await world.http.get(f"http://127.0.0.1:{world.fleet.file.ports[service]}/metrics")
        lines = [line for line in answer.text.splitlines() if line.startswith("virtfleet_step_seconds_count")]
        done += sum(float(line.rpartition(" ")[2]) for line in lines)
    return int(done)
