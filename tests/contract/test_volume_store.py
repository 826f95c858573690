"""What the store promises of volumes, asked of the real one on MongoDB and of its twin in memory alike."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.records.volume import Attachment, Volume
from virtfleet_common.settings import CommonSettings
from virtfleet_common.store import Store
from virtfleet_common.store.memory import MemoryStore
from virtfleet_common.store.memory.volumes import MemoryVolumes
from virtfleet_common.store.volumes import Volumes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RBD = {"type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "mon1", "port": 6789}]}


@pytest.fixture(params=["memory", "mongodb"])
async def volumes(request: pytest.FixtureRequest) -> AsyncIterator[Volumes]:
    """The volumes of an empty store."""
    if request.param == "memory":
        yield MemoryStore().volumes
        return
    url = request.getfixturevalue("mongodb_url")
    store = Store.connect(CommonSettings(mongodb_url=url, database=f"volumes_{uuid4().hex[:12]}"))
    await store.prepare()
    yield store.volumes
    store.close()


def a_volume(**fields: Any) -> Volume:
    plain = {"id": str(uuid4()), "name": "data", "project_id": "p1", "user_id": "u1", "size_gb": 1, "source": RBD}
    return Volume(**plain | {"created_at": NOW, "updated_at": NOW} | fields)


def an_attachment(id_: str = "a1", instance_id: str = "i1", **fields: Any) -> Attachment:
    plain = {"id": id_, "instance_id": instance_id, "host": "node1", "device": "vdb", "ticket": "t1"}
    return Attachment(**plain | {"reserved_at": NOW} | fields)


async def stored(volumes: Volumes, volume: Volume) -> Volume:
    found = await volumes.get(volume.id)
    assert found is not None
    return found


async def test_a_volume_reads_back_as_it_was_written(volumes: Volumes) -> None:
    volume = a_volume(description="d", is_readonly=True)
    assert await volumes.add(volume)
    assert not await volumes.add(volume)
    assert await volumes.get(volume.id) == volume
    assert await volumes.get("none") is None


async def test_the_newest_of_a_project_comes_first(volumes: Volumes) -> None:
    mine = [a_volume(created_at=NOW + timedelta(seconds=age)) for age in range(3)]
    for volume in [*mine, a_volume(project_id="p2")]:
        await volumes.add(volume)
    assert [one.id for one in await volumes.find(project_id="p1")] == [one.id for one in reversed(mine)]
    assert len(await volumes.find()) == 4


async def test_of_many_who_claim_a_volume_one_gets_it(volumes: Volumes) -> None:
    volume = a_volume()
    await volumes.add(volume)
    claims = [an_attachment(f"a{number}", f"i{number}") for number in range(10)]
    results = await asyncio.gather(*(volumes.claim(volume.id, claim) for claim in claims))
    assert results.count(True) == 1
    winner = claims[results.index(True)]
    assert (await stored(volumes, volume)).attachment == winner
    assert [one.id for one in await volumes.find(instance_id=winner.instance_id)] == [volume.id]


async def test_a_claim_made_again_notes_the_ticket_until_it_is_settled(volumes: Volumes) -> None:
    volume = a_volume()
    await volumes.add(volume)
    assert await volumes.claim(volume.id, an_attachment())
    assert await volumes.claim(volume.id, an_attachment(ticket="t2"))
    assert not await volumes.release(volume.id, "a1", ticket="t1")
    await volumes.settle(volume.id, an_attachment(rank=3, attached_at=NOW))
    assert not await volumes.claim(volume.id, an_attachment(ticket="t3"))
    assert await volumes.release(volume.id, "a1", ticket="t2")


async def test_what_does_not_exist_cannot_be_claimed(volumes: Volumes) -> None:
    assert not await volumes.claim("none", an_attachment())


async def test_an_attachment_is_settled_and_the_older_word_changes_nothing(volumes: Volumes) -> None:
    volume = a_volume()
    await volumes.add(volume)
    await volumes.claim(volume.id, an_attachment())
    assert (await stored(volumes, volume)).status == "attaching"
    moved = an_attachment(host="node2", attached_at=NOW, rank=8)
    assert await volumes.settle(volume.id, moved)
    assert await volumes.settle(volume.id, moved)
    assert not await volumes.settle(volume.id, an_attachment(host="node1", attached_at=NOW, rank=5))
    found = await stored(volumes, volume)
    assert found.attachment == moved
    assert found.status == "in-use"
    assert found.updated_at > volume.updated_at


async def test_what_is_over_stays_over(volumes: Volumes) -> None:
    volume = a_volume()
    await volumes.add(volume)
    await volumes.claim(volume.id, an_attachment("a1"))
    assert await volumes.release(volume.id, "a1")
    assert not await volumes.release(volume.id, "a1")
    assert not await volumes.settle(volume.id, an_attachment("a1", rank=9))
    assert (await stored(volumes, volume)).status == "available"
    await volumes.claim(volume.id, an_attachment("a2", "i2"))
    assert not await volumes.release(volume.id, "a1")
    assert (await stored(volumes, volume)).attachment == an_attachment("a2", "i2")


async def test_an_instance_that_goes_lets_go_of_everything(volumes: Volumes) -> None:
    made = [a_volume() for _ in range(3)]
    for volume, holder in zip(made, ["i1", "i1", "i2"], strict=True):
        await volumes.add(volume)
        await volumes.claim(volume.id, an_attachment(f"a-{volume.id}", holder))
    await volumes.release_all("i1")
    assert [(await stored(volumes, volume)).status for volume in made] == ["available", "available", "attaching"]


async def test_only_a_free_volume_is_forgotten(volumes: Volumes) -> None:
    volume = a_volume()
    await volumes.add(volume)
    await volumes.claim(volume.id, an_attachment())
    assert not await volumes.delete(volume.id)
    await volumes.release(volume.id, "a1")
    assert await volumes.delete(volume.id)
    assert not await volumes.delete(volume.id)
    assert await volumes.get(volume.id) is None


def test_the_twin_has_every_method_of_the_real_volumes() -> None:
    public = {name for name, value in vars(Volumes).items() if inspect.isfunction(value) and not name.startswith("_")}
    for name in public:
        real, twin = inspect.signature(getattr(Volumes, name)), inspect.signature(vars(MemoryVolumes)[name])
        assert real.parameters.keys() == twin.parameters.keys()
