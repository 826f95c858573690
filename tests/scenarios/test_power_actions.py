"""The life of an instance, one power action after the other: each is told twice, and its record is whole."""

from collections.abc import AsyncIterator

import pytest
from virtfleet_common.messages import (
    DeleteInstance,
    InstanceCommand,
    PauseInstance,
    RebootInstance,
    ResumeInstance,
    StartInstance,
    StopInstance,
    SuspendInstance,
    UnpauseInstance,
)
from virtfleet_common.states import PowerState, TaskState, VmState

from tests.witness import Chronicle, ended_once, everything_is_delivered, record_is_true
from tests.world import World, phase

pytestmark = pytest.mark.fleet
V, P, T = VmState, PowerState, TaskState

LIFE: list[tuple[type[InstanceCommand], str, str, TaskState, VmState, PowerState]] = [
    (PauseInstance, "pause", "compute_pause_instance", T.PAUSING, V.PAUSED, P.PAUSED),
    (UnpauseInstance, "unpause", "compute_unpause_instance", T.UNPAUSING, V.ACTIVE, P.RUNNING),
    (SuspendInstance, "suspend", "compute_suspend_instance", T.SUSPENDING, V.SUSPENDED, P.SHUTDOWN),
    (ResumeInstance, "resume", "compute_resume_instance", T.RESUMING, V.ACTIVE, P.RUNNING),
    (RebootInstance, "reboot", "compute_reboot_instance", T.REBOOTING, V.ACTIVE, P.RUNNING),
    (StopInstance, "stop", "compute_stop_instance", T.POWERING_OFF, V.STOPPED, P.SHUTDOWN),
    (StartInstance, "start", "compute_start_instance", T.POWERING_ON, V.ACTIVE, P.RUNNING),
    (DeleteInstance, "delete", "compute_terminate_instance", T.DELETING, V.DELETED, P.NOSTATE),
]


@pytest.fixture(params=["simulated_fleet", pytest.param("qemu_fleet", marks=pytest.mark.qemu)])
async def hosts(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Simulated hosts, and a real one."""
    async with World(request.getfixturevalue(request.param)) as found:
        yield found


async def test_a_life(hosts: World) -> None:
    chronicle = Chronicle(hosts.fleet)
    instance = await hosts.create("lazarus", metadata={"role": "test"})
    done = []
    for command, name, _, task, vm_state, power in LIFE:
        before = await hosts.instance(instance.id)
        async with hosts.story() as story:
            accepted = await hosts.client.command(command(instance_id=instance.id))
            end = await story.ends(accepted.action_id)
            start = await story.begins(accepted.action_id)
        told = [phase(event) for event in story.told.values() if event.data["request_id"] == accepted.action_id]
        assert sorted(told) == ["end", "start"], name
        assert start.data["rev"] < end.data["rev"]
        assert start.data["after"]["task_state"] == task
        states = {"vm_state": vm_state, "task_state": None, "power_state": power}
        assert end.data["after"] == states
        assert (end.data["fault"], end.data["host"]) == (None, before.host)
        after = await hosts.instance(instance.id)
        assert (after.vm_state, after.power_state, after.task_state, after.action) == (vm_state, power, None, None)
        done.append((accepted.action_id, name))
    await ended_once(hosts, chronicle, {action_id for action_id, _ in done})
    await everything_is_delivered(hosts)
    await record_is_true(hosts)
    await told_over_http(hosts, instance.id, done)


async def told_over_http(world: World, instance_id: str, done: list[tuple[str, str]]) -> None:
    """Every action of the instance is on record for the one who asks, newest first, with every step of it."""
    recent = {"OpenStack-API-Version": "compute 2.84"}
    path = f"/v2.1/servers/{instance_id}/os-instance-actions"
    listed = (await world.ask("GET", path, headers=recent)).json()["instanceActions"]
    assert [(one["request_id"], one["action"]) for one in listed[:-1]] == done[::-1]
    assert listed[-1]["action"] == "create"
    for (action_id, _), row in zip(done, LIFE, strict=True):
        shown = (await world.ask("GET", f"{path}/{action_id}", headers=recent)).json()["instanceAction"]
        (step,) = [event for event in shown["events"] if event["event"].startswith("compute_")]
        assert (step["event"], step["result"]) == (row[2], "Success")
        assert step["start_time"] <= step["finish_time"]
