"""What an evacuation asks of volumes: that they come along to the host that the instance was given to."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from virtfleet_common.errors import HypervisorFault, LostOwnership
from virtfleet_common.executor import StepExecutor, StepRun
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import ActionState, Step
from virtfleet_common.records.volume import Attachment, Volume
from virtfleet_common.relay import Relay
from virtfleet_common.states import TaskState, VmState
from virtfleet_common.steps import STEPS
from virtfleet_common.store import Expect
from virtfleet_common.store.memory import MemoryStore
from virtfleet_common.volumes import device_of
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_compute_agent.steps.context import HostContext
from virtfleet_compute_agent.steps.volumes import reattach
from virtfleet_compute_agent.storage import Storage

from tests.hypervisors import an_instance, opened, settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Shelter:
    """The host that an evacuation chose, in the middle of the step there."""

    def __init__(self, hypervisor: LibvirtHypervisor, folder: Path) -> None:
        self.store = MemoryStore()
        self.relay = Relay(self.store, MemoryBus(), "virtfleet/test")
        config = settings("test:///default", folder)
        self.host = HostContext(
            hypervisor, Storage(self.store, hypervisor), config, self._clean, self.store.instances.get
        )
        self.executor = StepExecutor(
            name="compute.node2", boot="boot", host="node2", store=self.store, relay=self.relay, settings=config,
            handlers={},
        )  # fmt: skip

    async def _clean(self, instance_id: str) -> None:
        """Nothing is owed."""

    async def volume(self, path: str) -> Volume:
        """A volume that the instance had on the lost host."""
        source = {"type": "file", "path": path}
        volume = Volume(
            id=f"v-{path}", name="data", project_id="p1", user_id="u1", size_gb=1, source=source, created_at=NOW,
            updated_at=NOW,
        )  # fmt: skip
        await self.store.volumes.add(volume)
        return volume

    async def run(self, volumes: list[Volume]) -> StepRun:
        """The step, claimed by this host, of an instance that has these volumes."""
        devices = [
            {**device_of(one, f"a-{one.id}", f"vd{name}"), "attached_at": NOW.isoformat()}
            for one, name in zip(volumes, "bcd", strict=False)
        ]
        step = Step(name="shelter", executor="compute.node2", expects=[TaskState.REBUILD_BLOCK_DEVICE_MAPPING], seq=2)
        action = ActionState(
            id="req-1", name="evacuate", trace_id="0" * 32, user_id="u1", project_id="p1", step=step, started_at=NOW,
            expires_at=NOW + timedelta(hours=1), original_vm_state=VmState.ACTIVE, progressed_at=NOW, claimed_by="boot",
        )  # fmt: skip
        task = TaskState.REBUILD_BLOCK_DEVICE_MAPPING
        instance = an_instance(host="node2", rev=7, task_state=task, action=action, block_devices=devices)
        await self.store.instances.insert(instance)
        for device in devices:
            held: dict[str, Any] = {"instance_id": instance.id, "host": "node1", "device": device["target"], "rank": 3}
            had = Attachment(id=device["attachment_id"], reserved_at=NOW, attached_at=NOW, **held)
            await self.store.volumes.claim(device["id"], had)
        return StepRun(self.executor, instance, action, STEPS["shelter"])

    async def hosts(self) -> list[str | None]:
        """Where the collection says that the volumes are, once everything was delivered."""
        await self.relay.delivered()
        return [one.attachment.host if one.attachment else None for one in await self.store.volumes.find()]


@pytest.fixture
async def shelter(tmp_path: Path) -> AsyncIterator[Shelter]:
    """A simulated one."""
    async with opened(settings("test:///default", tmp_path)) as hypervisor:
        yield Shelter(hypervisor, tmp_path)


async def test_volumes_come_along_and_once_more_does_no_harm(shelter: Shelter) -> None:
    run = await shelter.run([await shelter.volume("/a"), await shelter.volume("/b")])
    for _ in range(2):
        instance = await reattach(shelter.host, run)
        assert await shelter.hosts() == ["node2", "node2"]
    assert [device["target"] for device in instance.block_devices] == ["vdb", "vdc"]


async def test_an_instance_without_volumes_is_not_written(shelter: Shelter) -> None:
    run = await shelter.run([])
    assert (await reattach(shelter.host, run)).rev == 7


async def test_who_lost_the_instance_moves_nothing(shelter: Shelter) -> None:
    run = await shelter.run([await shelter.volume("/a")])
    await shelter.store.instances.transition(run.instance.id, expect=Expect(), action={"claimed_by": "other"})
    with pytest.raises(LostOwnership):
        await reattach(shelter.host, run)
    assert await shelter.hosts() == ["node1"]


@pytest.mark.qemu
async def test_a_volume_that_is_not_here_stops_it_before_anything_changed(
    embedded: LibvirtHypervisor, tmp_path: Path
) -> None:
    shelter, there = Shelter(embedded, tmp_path), tmp_path / "there"
    there.touch()
    run = await shelter.run([await shelter.volume(str(there)), await shelter.volume(str(tmp_path / "gone"))])
    with pytest.raises(HypervisorFault) as missing:
        await reattach(shelter.host, run)
    assert missing.value.facts["code"] == "no_volume"
    assert await shelter.hosts() == ["node1", "node1"]
