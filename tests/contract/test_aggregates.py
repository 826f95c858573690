"""What the store promises of aggregates, of the lists of moves and of a group's members; real one and twin alike."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.records import Flavor, Instance
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import VmState
from virtfleet_common.store import InstanceQuery, MigrationQuery, Store
from virtfleet_common.store.memory import MemoryStore

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["memory", "mongodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Either store, empty."""
    if request.param == "memory":
        yield MemoryStore()
        return
    database = f"aggregates_{uuid4().hex[:12]}"
    store = Store.connect(CommonSettings(mongodb_url=request.getfixturevalue("mongodb_url"), database=database))
    await store.prepare()
    yield store
    await store.client.drop_database(database)
    store.close()


async def test_aggregates_are_numbered_even_when_made_at_once(store: Store) -> None:
    made = await asyncio.gather(*(store.aggregates.create(f"a{number}", {}) for number in range(8)))
    assert sorted(one.id for one in made if one) == list(range(1, 9))
    assert [one.id for one in await store.aggregates.find()] == list(range(1, 9))


async def test_a_name_is_had_once(store: Store) -> None:
    first, second = await store.aggregates.create("x", {}), await store.aggregates.create("y", {})
    assert first is not None
    assert second is not None
    assert await store.aggregates.create("x", {}) is None
    assert await store.aggregates.change(second.id, name="x") is None
    assert await store.aggregates.change(99, name="z") is None


async def test_metadata_is_merged_whatever_its_keys_hold(store: Store) -> None:
    made = await store.aggregates.create("x", {"a": "1", "b.c": "2"})
    assert made is not None
    changed = await store.aggregates.change(made.id, metadata={"b.c": None, "$d": "$$NOW", "e.f": "3"})
    assert changed is not None
    assert dict(changed.metadata) == {"a": "1", "$d": "$$NOW", "e.f": "3"}
    assert await store.aggregates.get(made.id) == changed


async def test_a_host_is_in_an_aggregate_once(store: Store) -> None:
    made = await store.aggregates.create("x", {})
    assert made is not None
    added = await asyncio.gather(*(store.aggregates.add_host(made.id, "h1") for _ in range(5)))
    assert [one is not None for one in added].count(True) == 1
    await store.aggregates.add_host(made.id, "h2")
    assert not await store.aggregates.delete(made.id)
    left = await store.aggregates.remove_host(made.id, "h1")
    assert left is not None
    assert list(left.hosts) == ["h2"]
    assert await store.aggregates.remove_host(made.id, "h1") is None
    await store.aggregates.remove_host(made.id, "h2")
    assert await store.aggregates.delete(made.id)
    assert await store.aggregates.get(made.id) is None


async def a_move(store: Store, number: int, **fields: Any) -> str:
    at = START + timedelta(hours=number)
    usual: dict[str, Any] = {
        "number": number, "instance_id": "i", "project_id": "p", "user_id": "u", "type": "resize",
        "status": "finished", "source": "h1", "destination": "h2", "old_flavor_id": "1", "new_flavor_id": "2",
        "created_at": at, "updated_at": at,
    }  # fmt: skip
    await store.migrations.put(str(number), {**usual, **fields}, 40)
    return str(number)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (MigrationQuery(), "210"),
        (MigrationQuery(limit=2), "21"),
        (MigrationQuery(host="h1"), "210"),
        (MigrationQuery(host="h3"), "1"),
        (MigrationQuery(source="h3"), "1"),
        (MigrationQuery(status="error", type="migration"), "1"),
        (MigrationQuery(instance_id="j"), "2"),
        (MigrationQuery(project_id="p", user_id="v"), "0"),
        (MigrationQuery(changed_since=START + timedelta(hours=1)), "21"),
        (MigrationQuery(changed_before=START + timedelta(hours=1)), "10"),
    ],
)
async def test_moves_are_listed_newest_first(store: Store, query: MigrationQuery, expected: str) -> None:
    await a_move(store, 0, user_id="v")
    await a_move(store, 1, status="error", type="migration", source="h3", destination="h1")
    await a_move(store, 2, instance_id="j", destination=None)
    assert "".join(one.id for one in await store.migrations.find_page(query)) == expected


async def test_a_page_of_moves_begins_where_the_last_one_ended(store: Store) -> None:
    for number in range(3):
        await a_move(store, number, created_at=START)
    first = await store.migrations.find_page(MigrationQuery(limit=1))
    rest = await store.migrations.find_page(MigrationQuery(after=first[0]))
    assert [one.id for one in [*first, *rest]] == ["2", "1", "0"]


async def test_a_move_reads_the_same_in_whatever_order_it_was_written(store: Store) -> None:
    begun = {
        "number": 7, "instance_id": "i", "project_id": "p", "user_id": "u", "type": "evacuation", "status": "accepted",
        "source": "h1", "old_flavor_id": "1", "new_flavor_id": "1", "created_at": START, "updated_at": START,
    }  # fmt: skip
    later = START + timedelta(hours=1)
    writes = [(begun, 5), ({"status": "pre-migrating", "destination": "h2", "updated_at": later}, 10),
              ({"status": "done", "updated_at": later}, 40)]  # fmt: skip
    read = []
    for number, order in enumerate(permutations(writes)):
        for fields, rank in order:
            await store.migrations.put(str(number), fields, rank)
            shown = await store.migrations.get(str(number))
            assert (shown is not None) is (len(await store.migrations.find_page(MigrationQuery(limit=9))) > number)
        assert shown is not None
        read.append(shown.model_dump(exclude={"id"}))
    assert all(one == read[0] for one in read)
    assert (read[0]["status"], read[0]["destination"], read[0]["updated_at"]) == ("done", "h2", later)


async def test_a_groups_members_are_the_instances_whose_hint_names_it(store: Store) -> None:
    for name, hints in [("in", {"group": "g"}), ("out", {"group": "h"}), ("none", {})]:
        flavor = Flavor(id="1", name="f", vcpus=1, ram_mb=1)
        await store.instances.insert(
            Instance(
                id=name,
                name=name,
                project_id="p",
                user_id="u",
                vm_state=VmState.ACTIVE,
                flavor=flavor,
                hints=hints,
                created_at=START,
                updated_at=START,
            )
        )
    assert [one.id for one in await store.instances.find(InstanceQuery(group_id="g"))] == ["in"]
    assert await store.instances.project_ids() == ["p"]
