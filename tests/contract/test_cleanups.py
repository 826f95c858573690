"""What a host removes of what it owes, and what it leaves alone: hosts with folders of their own or in common, of which
one has a libvirt as well; the record says what became of the instance since."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from virtfleet_common.errors import Faulty
from virtfleet_common.records import Cleanup, Instance, Move, Resources
from virtfleet_common.states import PowerState, VmState
from virtfleet_common.store import Expect
from virtfleet_common.store.memory import MemoryStore
from virtfleet_compute_agent.cleanups import Cleaner
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_compute_agent.hypervisor.layout import Layout
from virtfleet_compute_agent.storage import Storage

from tests.hypervisors import an_instance, settings

pytestmark = pytest.mark.qemu
HERE, SHARING, APART = "here", "sharing", "apart"


class Owing:
    """A host that owes a clean-up, one that shares its storage, and one that does not."""

    def __init__(self, hypervisor: LibvirtHypervisor, state: Path, folder: Path) -> None:
        self.store = MemoryStore()
        self.hypervisor = hypervisor
        self.layout = Layout(state)
        uri = "qemu:///embed?root=/nowhere"  # never opened, because files need no libvirt
        self.sharing = LibvirtHypervisor(settings(uri, folder, instances_dir=self.layout.instances))
        self.cleaner = Cleaner(HERE, self.store, hypervisor, Storage(self.store, hypervisor))

    async def register(self) -> None:
        for name in (HERE, SHARING, APART):
            await self.store.hosts.register(name, uuid=f"uuid-{name}", limits=Resources(), facts={"boot_id": name})
        await self.hypervisor.probe_shared(f"host:uuid-{SHARING}")

    async def owe(self, is_shared: bool | None = False, move_id: str = "m-1", **fields: Any) -> Instance:
        """An instance whose move `move_id` left a debt here, and which is now what `fields` say."""
        instance = await self.store.instances.insert(an_instance(epoch=3, **fields))
        await self.store.cleanups.add(
            Cleanup(
                id=f"{move_id}:{HERE}", host=HERE, instance_id=instance.id, is_shared=is_shared, migration_id=move_id,
                created_at=datetime.now(UTC),
            )
        )  # fmt: skip
        return instance

    def lay(self, path: Path) -> Path:
        path.mkdir(parents=True)
        (path / "disk").write_text("data")
        return path

    async def is_owed(self) -> bool:
        return bool(await self.store.cleanups.find(HERE))


@pytest.fixture
async def owing(embedded: LibvirtHypervisor, embed_root: Path, tmp_path: Path) -> AsyncIterator[Owing]:
    made = Owing(embedded, embed_root / "state", tmp_path)
    await made.register()
    yield made
    await embedded.remove_probe(f"host:uuid-{SHARING}")
    for guest in await embedded.list_guests():
        await embedded.destroy(guest.instance_id)
        await embedded.undefine(guest.instance_id)
    for instance in list(made.store.instances.records):
        await embedded.delete_files(instance)
        await embedded.remove_aside(instance)


def a_move(source: str, destination: str | None, id_: str = "m-2") -> Move:
    return Move(
        id=id_, type="resize", source=source, source_claim=None, old_vm_state=VmState.ACTIVE, destination=destination
    )


async def test_what_nobody_else_has_goes(owing: Owing) -> None:
    instance = await owing.owe(host=APART)
    files, aside = owing.lay(owing.layout.instance(instance.id)), owing.lay(owing.layout.aside(instance.id))
    await owing.cleaner.clean_all()
    assert not files.exists()
    assert not aside.exists()
    assert not await owing.is_owed()


@pytest.mark.parametrize(
    ("is_shared", "host", "move"),
    [
        (False, SHARING, None),
        (None, SHARING, None),
        (False, SHARING, a_move(APART, SHARING)),
        (False, APART, a_move(SHARING, APART)),
        (True, APART, a_move(SHARING, APART)),
        (True, APART, None),
        (False, "unknown", None),
    ],
    ids=["there", "there, never looked", "came there", "went from there", "went on", "shared then", "cannot be seen"],
)
async def test_what_a_host_may_have_that_the_instance_came_to_since_stays(
    owing: Owing, is_shared: bool | None, host: str, move: Move | None
) -> None:
    instance = await owing.owe(is_shared, host=host, move=move)
    files, aside = owing.lay(owing.layout.instance(instance.id)), owing.lay(owing.layout.aside(instance.id))
    await owing.cleaner.clean_all()
    assert (files / "disk").exists()
    assert (aside / "disk").exists()
    assert not await owing.is_owed()


async def test_nobody_needs_the_disk_of_an_instance_that_was_deleted(owing: Owing) -> None:
    instance = await owing.owe(host=SHARING, vm_state=VmState.DELETED)
    files = owing.lay(owing.layout.instance(instance.id))
    await owing.cleaner.clean_all()
    assert not files.exists()


async def test_a_disk_on_its_way_to_a_host_that_shares_this_ones_storage_goes_on(owing: Owing) -> None:
    instance = await owing.owe(host=APART, move=a_move(APART, SHARING))
    await owing.hypervisor.open_export(instance, "m-1/here")
    coming = await owing.sharing.open_export(instance, f"m-2/{SHARING}")
    await owing.cleaner.clean_all()
    assert [path.name for path in owing.layout.instances.glob(f"{instance.id}_incoming*")] == [
        owing.layout.incoming(instance.id, coming.token).name
    ]
    await owing.sharing.close_export(instance.id, adopt=False)


@pytest.mark.parametrize("move", [a_move(HERE, APART), a_move(APART, HERE)], ids=["from here", "to here"])
async def test_a_debt_that_comes_late_waits_for_the_end_of_the_move_that_this_host_is_in(
    owing: Owing, move: Move
) -> None:
    instance = await owing.owe(host=APART, move=move)
    aside = owing.lay(owing.layout.aside(instance.id))
    await owing.cleaner.clean_all()
    assert (aside / "disk").exists()
    assert await owing.is_owed()
    await owing.store.instances.transition(instance.id, expect=Expect(), set={"move": None})
    await owing.cleaner.clean_all()
    assert not aside.exists()
    assert not await owing.is_owed()


async def test_whoever_prepares_for_the_instance_has_this_host_clean_before(owing: Owing) -> None:
    instance = await owing.owe(host=APART, move=a_move(APART, HERE))
    files = owing.lay(owing.layout.instance(instance.id))
    await owing.cleaner.clean(instance.id)
    assert not files.exists()
    assert not await owing.is_owed()


async def test_a_guest_that_is_newer_than_the_record_is_left_alone(owing: Owing) -> None:
    instance = await owing.owe(host=APART)
    newer = instance.model_copy(update={"epoch": instance.epoch + 1})
    await owing.hypervisor.create_disk(newer)
    await owing.hypervisor.define(newer)
    await owing.hypervisor.start(newer.id)
    await owing.cleaner.clean_all()
    guest = await owing.hypervisor.observe(instance.id)
    assert guest is not None
    assert guest.power_state is PowerState.RUNNING
    assert owing.layout.disk(instance.id).exists()
    assert await owing.is_owed()
    with pytest.raises(Faulty, match="epoch 4"):
        await owing.cleaner.clean(instance.id)


async def test_a_guest_as_old_as_the_record_goes(owing: Owing) -> None:
    instance = await owing.owe(host=APART)
    older = instance.model_copy(update={"epoch": instance.epoch - 1})
    await owing.hypervisor.create_disk(older)
    await owing.hypervisor.define(older)
    await owing.cleaner.clean_all()
    assert await owing.hypervisor.observe(instance.id) is None
    assert not owing.layout.instance(instance.id).exists()
