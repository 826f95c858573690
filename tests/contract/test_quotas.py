"""What quotas promise, asked of the real store on MongoDB and of its twin in memory alike; and of the real one alone,
that the counters are right whatever dies in the middle of a change."""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common import failpoints, quota
from virtfleet_common.quota_audit import QuotaAudit
from virtfleet_common.records import Flavor, Instance, QuotaHolder
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import VmState
from virtfleet_common.store import Store
from virtfleet_common.store import quotas as real_quotas
from virtfleet_common.store.memory import MemoryStore

EACH = {"instances": 1, "vcpus": 2, "ram_mb": 512}
SMALL = Flavor(id="1", name="small", vcpus=1, ram_mb=512)
LARGE = Flavor(id="2", name="large", vcpus=4, ram_mb=4096)
OPEN = {"instances": -1, "vcpus": -1, "ram_mb": -1}
FIVE = {**OPEN, "instances": 5}


@pytest.fixture
async def mongodb_store(mongodb_url: str) -> AsyncIterator[Store]:
    """A store on MongoDB; tests keep to projects of their own."""
    store = Store.connect(CommonSettings(mongodb_url=mongodb_url, database="quota_contract"))
    await store.prepare()
    yield store
    store.close()


@pytest.fixture(params=["memory", "mongodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Either store."""
    if request.param == "memory":
        yield MemoryStore()
        return
    store = Store.connect(CommonSettings(mongodb_url=request.getfixturevalue("mongodb_url"), database="quota_contract"))
    await store.prepare()
    yield store
    store.close()


@pytest.fixture
def project() -> str:
    """A project that nobody else uses."""
    return uuid4().hex


def ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


async def used(store: Store, project: str) -> dict[str, int]:
    """What is used of each kind."""
    return quota.summed([(await store.quotas.get(project)).used])


def test_the_twin_has_every_method_of_the_real_store() -> None:
    for part in (MemoryStore().quotas, MemoryStore().aggregates):
        twin, real = type(part), type(part).__mro__[1]
        public = {name for name, one in vars(real).items() if inspect.isfunction(one) and not name.startswith("_")}
        assert public <= set(vars(twin))
        for name in public:
            assert list(inspect.signature(getattr(real, name)).parameters) == list(
                inspect.signature(getattr(twin, name)).parameters
            )


# Counting


async def test_a_reservation_counts_once_however_often_it_is_made(store: Store, project: str) -> None:
    wanted = ids(3)
    for _ in range(2):
        assert await store.quotas.reserve(project, wanted, EACH, defaults=OPEN) == 3
    assert await used(store, project) == {"instances": 3, "vcpus": 6, "ram_mb": 1536}


async def test_as_many_are_reserved_as_fit_but_not_fewer_than_asked_for_at_least(store: Store, project: str) -> None:
    wanted = ids(8)
    assert await store.quotas.reserve(project, wanted, EACH, defaults=FIVE, least=6) == 0
    assert await used(store, project) == dict.fromkeys(quota.KINDS, 0)
    assert await store.quotas.reserve(project, wanted, EACH, defaults=FIVE, least=2) == 5
    assert await store.quotas.reserve(project, wanted, EACH, defaults=FIVE, least=2) == 5  # the same answer again
    assert await store.quotas.reserve(project, ids(1), EACH, defaults=FIVE) == 0
    assert (await used(store, project))["instances"] == 5


async def test_twenty_at_once_get_the_five_places_that_there_are(store: Store, project: str) -> None:
    asked = (store.quotas.reserve(project, ids(1), EACH, defaults=FIVE) for _ in range(20))
    assert sorted(await asyncio.gather(*asked)) == [0] * 15 + [1] * 5
    assert (await used(store, project))["instances"] == 5
    assert await store.quotas.recount(project) == {}


@pytest.mark.parametrize("kind", quota.KINDS)
async def test_every_kind_is_a_limit_of_its_own(store: Store, project: str, kind: str) -> None:
    room = {**OPEN, kind: 2 * EACH[kind]}
    assert await store.quotas.reserve(project, ids(4), EACH, defaults=room) == 2


async def test_a_projects_own_limits_take_the_place_of_the_defaults(store: Store, project: str) -> None:
    await store.quotas.set_limits(project, {"instances": 1})
    assert await store.quotas.reserve(project, ids(3), EACH, defaults=FIVE) == 1
    await store.quotas.set_limits(project, {"vcpus": 4})
    assert dict((await store.quotas.get(project)).limits) == {"instances": 1, "vcpus": 4}
    await store.quotas.clear_limits(project)
    assert await store.quotas.reserve(project, ids(9), EACH, defaults=FIVE) == 4
    assert project in await store.quotas.project_ids()


async def test_a_release_gives_back_once(store: Store, project: str) -> None:
    first, second = ids(2)
    await store.quotas.reserve(project, [first, second], EACH, defaults=OPEN)
    for _ in range(2):
        await store.quotas.release(project, first)
    assert await used(store, project) == EACH
    assert [one.id for one in await store.quotas.holders(project)] == [second]
    gone = await store.quotas.holder(first)
    assert gone is not None
    assert gone.gone_at is not None


async def test_a_resize_holds_its_increase_until_it_is_settled(store: Store, project: str) -> None:
    (guest,) = ids(1)
    await store.quotas.reserve(project, [guest], EACH, defaults=OPEN)
    more = {"vcpus": 6}
    narrow = {**OPEN, "vcpus": 7}
    assert not await store.quotas.hold(project, guest, "req-1", more, rank=3, defaults=narrow)
    for _ in range(2):
        assert await store.quotas.hold(project, guest, "req-1", more, rank=3, defaults=OPEN)
    assert (await used(store, project))["vcpus"] == 8
    await store.quotas.drop(project, guest, "req-1")
    assert (await used(store, project))["vcpus"] == 2
    await store.quotas.hold(project, guest, "req-2", more, rank=4, defaults=OPEN)
    for _ in range(2):
        await store.quotas.settle(project, guest, {**EACH, "vcpus": 8}, rank=9)
    assert (await used(store, project))["vcpus"] == 8


async def test_what_comes_late_overwrites_nothing_newer(store: Store, project: str) -> None:
    (guest,) = ids(1)
    await store.quotas.reserve(project, [guest], EACH, defaults=OPEN)
    await store.quotas.settle(project, guest, {**EACH, "vcpus": 8}, rank=9)
    await store.quotas.hold(project, guest, "req-later", {"vcpus": 1}, rank=12, defaults=OPEN)
    await store.quotas.settle(project, guest, EACH, rank=5)
    await store.quotas.settle(project, guest, {**EACH, "vcpus": 8}, rank=9)
    assert (await used(store, project))["vcpus"] == 9  # the newer move still holds what it held
    await store.quotas.release(project, guest)
    await store.quotas.settle(project, guest, EACH, rank=20)
    await store.quotas.hold(project, guest, "req-late", {"vcpus": 1}, rank=21, defaults=OPEN)
    assert await used(store, project) == dict.fromkeys(quota.KINDS, 0)


async def test_a_smaller_size_never_asks_for_room(store: Store, project: str) -> None:
    (guest,) = ids(1)
    await store.quotas.reserve(project, [guest], EACH, defaults=OPEN)
    await store.quotas.set_limits(project, {"instances": 0, "vcpus": 0, "ram_mb": 0})
    await store.quotas.settle(project, guest, {"instances": 1, "vcpus": 1, "ram_mb": 256}, rank=1)
    assert await used(store, project) == {"instances": 1, "vcpus": 1, "ram_mb": 256}


# Whatever dies in the middle


@pytest.mark.parametrize("point", ["quota.counted", "quota.written"])
@pytest.mark.parametrize("mended_by", ["the next one", "the audit"])
async def test_a_change_that_was_cut_off_is_carried_on(
    mongodb_store: Store, project: str, point: str, mended_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = mongodb_store.quotas
    monkeypatch.setattr(failpoints, "_FOLDER", str(tmp_path))
    first, second = ids(2)

    async def cut_off(change: Any) -> None:
        (tmp_path / point).write_text("raise")
        with pytest.raises(RuntimeError):
            await change

    await quotas.reserve(project, [first], EACH, defaults=OPEN)
    await cut_off(quotas.reserve(project, [second], EACH, defaults=OPEN))
    await cut_off(quotas.release(project, first))
    if mended_by == "the audit":
        assert await quotas.recount(project) == {}  # nothing was lost, so nothing needs correcting
    else:
        assert await quotas.reserve(project, [second], EACH, defaults=OPEN) == 1
        await quotas.release(project, first)
        assert await quotas.reserve(project, ids(1), EACH, defaults={**OPEN, "instances": 1}) == 0
        await quotas.recount(project)
    assert await used(mongodb_store, project) == EACH
    assert [one.id for one in await quotas.holders(project)] == [second]
    assert not await pending(mongodb_store, project)


async def pending(store: Store, project: str) -> dict[str, Any]:
    """The changes that are not closed."""
    row = await store.client.get_database("quota_contract")["quotas"].find_one({"_id": project})
    return dict(row["pending"])


@pytest.mark.parametrize("seed", range(8))
async def test_many_writers_that_die_anywhere_leave_counters_that_are_right(
    mongodb_store: Store, project: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)

    def reach(point: str) -> None:
        if dice.random() < 0.2:
            raise RuntimeError(point)

    monkeypatch.setattr(real_quotas, "reach", reach)
    quotas, guests = mongodb_store.quotas, ids(4)

    async def one_change(number: int) -> None:
        guest, limit = dice.choice(guests), {**OPEN, "vcpus": 30}
        sized = {**EACH, "vcpus": dice.randint(1, 9)}
        try:
            match number % 5:
                case 0 | 1:
                    await quotas.reserve(project, dice.sample(guests, 2), sized, defaults=limit)
                case 2:
                    await quotas.hold(project, guest, f"req-{number}", {"vcpus": 3}, rank=number, defaults=limit)
                case 3:
                    await quotas.settle(project, guest, sized, rank=number)
                case _:
                    await quotas.release(project, guest)
        except RuntimeError:
            pass  # it died there

    for start in range(0, 60, 12):
        await asyncio.gather(*(one_change(number) for number in range(start, start + 12)))
        await judge(mongodb_store, project)
    monkeypatch.undo()
    assert await quotas.recount(project) == {}
    assert not await pending(mongodb_store, project)
    right = quota.summed(quota.total(one) for one in await quotas.holders(project))
    assert await used(mongodb_store, project) == right


async def judge(store: Store, project: str) -> None:
    """At any moment, `used` is the sum over the holders and the pending changes that are not written."""
    database = store.client.get_database("quota_contract")
    row = await database["quotas"].find_one({"_id": project})
    rows = database["quota_holders"].find({"project_id": project})
    held = {one["_id"]: QuotaHolder.model_validate(one) async for one in rows}
    unwritten = [one["delta"] for id_, one in row["pending"].items() if id_ not in held or held[id_].op != one["op"]]
    assert quota.summed([row["used"]]) == quota.summed([*map(quota.total, held.values()), *unwritten])


async def test_the_audit_corrects_counters_that_somebody_spoiled_while_others_go_on(
    mongodb_store: Store, project: str
) -> None:
    quotas = mongodb_store.quotas
    await quotas.reserve(project, ids(3), EACH, defaults=OPEN)
    rows = mongodb_store.client.get_database("quota_contract")["quotas"]
    await rows.update_one({"_id": project}, {"$inc": {"used.vcpus": 7, "used.instances": -1}})
    busy = (quotas.reserve(project, ids(1), EACH, defaults=OPEN) for _ in range(10))
    wrong, *_ = await asyncio.gather(quotas.recount(project), *busy)
    assert wrong == {"instances": 1, "vcpus": -7}
    assert await used(mongodb_store, project) == {"instances": 13, "vcpus": 26, "ram_mb": 13 * 512}


async def test_a_project_of_many_instances_is_counted_as_fast_as_a_small_one(mongodb_url: str, project: str) -> None:
    database = f"quota_large_{project[:12]}"
    store = Store.connect(CommonSettings(mongodb_url=mongodb_url, database=database))
    await store.prepare()

    async def seconds() -> float:
        began = time.perf_counter()
        for guest in ids(30):
            await store.quotas.reserve(project, [guest], EACH, defaults=OPEN)
            await store.quotas.release(project, guest)
        return time.perf_counter() - began

    await seconds()
    small = await seconds()
    for _ in range(10):
        assert await store.quotas.reserve(project, ids(1000), EACH, defaults=OPEN) == 1000
    large = await seconds()
    row = await store.client.get_database(database)["quotas"].find_one({"_id": project})
    await store.client.drop_database(database)
    store.close()
    assert len(str(row)) < 500  # nothing of the 10,000 stands in the document that every write changes
    assert large < 4 * small


# The audit


def an_instance(project: str, **fields: Any) -> Instance:
    long_ago = datetime.now(UTC) - timedelta(hours=1)
    usual: dict[str, Any] = {
        "id": str(uuid4()), "name": "guest", "project_id": project, "user_id": "u", "vm_state": VmState.ACTIVE,
        "flavor": SMALL, "created_at": long_ago, "updated_at": long_ago,
    }  # fmt: skip
    return Instance(**usual | fields)


async def test_the_audit_finds_nothing_where_all_is_right(store: Store, project: str) -> None:
    counted = await store.instances.insert(an_instance(project))
    await store.instances.insert(an_instance(project, vm_state=VmState.DELETED))
    await store.quotas.reserve(project, [counted.id], quota.amounts_of(SMALL), defaults=OPEN)
    assert (await QuotaAudit(store, patience=0).audit(project)).is_clean


async def test_the_audit_mends_what_it_finds(store: Store, project: str) -> None:
    uncounted = await store.instances.insert(an_instance(project))
    deleted = await store.instances.insert(an_instance(project, vm_state=VmState.DELETED))
    larger = await store.instances.insert(an_instance(project, rev=7))
    resizing = await store.instances.insert(an_instance(project, new_flavor=LARGE))
    (never,) = ids(1)
    for holder in (deleted.id, never, resizing.id):
        await store.quotas.reserve(project, [holder], quota.amounts_of(SMALL), defaults=OPEN)
    await store.quotas.reserve(project, [larger.id], quota.amounts_of(LARGE), defaults=OPEN)
    await store.quotas.hold(project, larger.id, "req-never-accepted", {"vcpus": 9}, rank=8, defaults=OPEN)
    assert (await QuotaAudit(store, patience=60).audit(project)).uncounted == [uncounted.id]  # the rest is too young
    (found,) = [one for one in await QuotaAudit(store, patience=0).run() if one.project_id == project]
    assert sorted(found.gone) == sorted([deleted.id, never])
    assert sorted(found.wrong_size) == sorted([larger.id, resizing.id])
    assert await used(store, project) == {"instances": 3, "vcpus": 1 + 1 + 4, "ram_mb": 512 + 512 + 4096}
    assert (await QuotaAudit(store, patience=0).audit(project)).is_clean
