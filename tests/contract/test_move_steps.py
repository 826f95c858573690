"""The steps of a resize on real files: one host that has a libvirt is at either end, the other one is only a folder."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from virtfleet_common.executor import StepExecutor, StepRun
from virtfleet_common.memory_bus import MemoryBus
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
        self.host = HostContext(hypervisor, Storage(self.store, hypervisor), self.config, self._clean)

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
