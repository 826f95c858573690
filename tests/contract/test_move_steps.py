"""The steps of a resize on real files: one host that has a libvirt is at either end, the other one is only a folder."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from virtfleet_common.executor import StepExecutor, StepRun
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.outcomes import NotCleaned
from virtfleet_common.ports import Export
from virtfleet_common.records import ActionState, Instance, Move
from virtfleet_common.relay import Relay
from virtfleet_common.states import VmState
from virtfleet_common.steps import STEPS, make_step
from virtfleet_common.store import Expect
from virtfleet_common.store.memory import MemoryStore
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_compute_agent.hypervisor.layout import Layout
from virtfleet_compute_agent.steps import resize
from virtfleet_compute_agent.steps.context import HostContext
from virtfleet_compute_agent.storage import Storage

from tests.hypervisors import an_instance, settings

pytestmark = pytest.mark.qemu
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESIZE = Move(
    id="m-1", type="resize", source="a", source_claim=None, old_vm_state=VmState.STOPPED, destination="b"
)  # fmt: skip


class Mover:
    """The host with a libvirt, in the middle of a step, and the folder of another one, which shares nothing with it."""

    def __init__(self, hypervisor: LibvirtHypervisor, state: Path, folder: Path) -> None:
        self.store = MemoryStore()
        self.hypervisor = hypervisor
        self.layout = Layout(state)
        self.config = settings("qemu:///embed?root=/nowhere", folder)
        self.other = LibvirtHypervisor(self.config)  # never opened, because files need no libvirt
        self.host = HostContext(
            hypervisor, Storage(self.store, hypervisor), self.config, self._clean, self.store.instances.get
        )

    async def _clean(self, instance_id: str) -> None:
        """Nothing is owed."""

    async def run(self, name: str, move: Move, of: Instance | None = None, export: Export | None = None) -> StepRun:
        """A step of `move`, claimed by this host, of an instance that is new or was at another step before."""
        notes = {"export": asdict(export)} if export is not None else {}
        action = ActionState(
            id="req-1", name="resize", trace_id="0" * 32, user_id="u1", project_id="p1", step=make_step(name, "x"),
            started_at=NOW, expires_at=NOW + timedelta(hours=1), original_vm_state=VmState.STOPPED, progressed_at=NOW,
            claimed_by="boot", notes=notes,
        )  # fmt: skip
        stored = of or await self.store.instances.insert(an_instance(host="a", vm_state=VmState.STOPPED))
        fields = {"task_state": STEPS[name].path[0], "move": move.model_dump()}
        instance = await self.store.instances.transition(stored.id, expect=Expect(), set=fields, begin=action)
        executor = StepExecutor(
            name="compute.x", boot="boot", host="x", store=self.store,
            relay=Relay(self.store, MemoryBus(), "virtfleet/test"), settings=self.config, handlers={},
        )  # fmt: skip
        return StepRun(executor, instance, action, STEPS[name])

    def left(self, instance: Instance) -> list[str]:
        """What stands for a disk that is expected here."""
        incoming = self.layout.instances.glob(f"{instance.id}_incoming*")
        found = [*self.layout.instances.glob(".probe-*"), *incoming, self.layout.export(instance.id)]
        return sorted(path.name for path in found if path.exists())


@pytest.fixture
async def mover(embedded: LibvirtHypervisor, embed_root: Path, tmp_path: Path) -> AsyncIterator[Mover]:
    made = Mover(embedded, embed_root / "state", tmp_path)
    yield made
    for token in ("m-1/b", "m-1/c"):
        await embedded.remove_probe(token)
    for id_ in made.store.instances.records:
        for hypervisor in (embedded, made.other):
            await hypervisor.close_export(id_, adopt=False)
        await embedded.undefine(id_)
        await embedded.remove_aside(id_)
        await embedded.delete_files(id_)


async def test_a_host_that_was_tried_before_is_not_taken_for_the_destination(mover: Mover) -> None:
    """It shares the source's storage, and was lost after it had prepared."""
    before = await mover.run("prepare", RESIZE)
    await resize.prepare(mover.host, before)
    chosen = RESIZE.model_copy(update={"destination": "c"})
    export = await mover.other.open_export(before.instance, chosen.transfer)
    await mover.hypervisor.create_disk(before.instance)
    sent = await resize.send(mover.host, await mover.run("move", chosen, before.instance, export))
    assert sent.set["move.is_shared"] is False
    assert sent.notes["disk_bytes"] > 0


async def test_no_door_stays_open_for_a_preparation_that_fails(mover: Mover) -> None:
    run = await mover.run("prepare", RESIZE)
    await resize.prepare(mover.host, run)
    await mover.hypervisor.define(run.instance)
    with pytest.raises(NotCleaned, match="is here already"):
        await resize.prepare(mover.host, run)  # by the next boot of its agent
    assert mover.left(run.instance) == []


async def test_no_door_stays_open_for_a_preparation_that_is_taken_away(mover: Mover) -> None:
    run = await mover.run("prepare", RESIZE)
    preparing = asyncio.create_task(resize.prepare(mover.host, run))
    async with asyncio.timeout(30):
        while not mover.left(run.instance):  # noqa: ASYNC110 (no event tells of files)
            await asyncio.sleep(0.001)
    preparing.cancel()
    await asyncio.wait({preparing})
    assert preparing.cancelled()
    assert mover.left(run.instance) == []


@pytest.mark.parametrize("move", [None, RESIZE.model_copy(update={"destination": "c"})], ids=["deleted", "elsewhere"])
async def test_the_door_is_closed_again_when_the_move_goes_on_without_it(mover: Mover, move: Move | None) -> None:
    run = await mover.run("prepare", RESIZE)
    prepared = await resize.prepare(mover.host, run)
    await mover.store.instances.transition(
        run.instance.id, expect=Expect(), set={"move": move.model_dump() if move else None}
    )
    assert prepared.undo is not None
    await prepared.undo()
    assert mover.left(run.instance) == []


async def test_the_door_stays_open_for_a_move_that_goes_on_through_it(mover: Mover) -> None:
    run = await mover.run("prepare", RESIZE)
    prepared = await resize.prepare(mover.host, run)
    before = mover.left(run.instance)
    assert prepared.undo is not None
    await prepared.undo()
    assert mover.left(run.instance) == before != []
