"""What the store promises, asked of the real one on MongoDB and of its twin in memory alike."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common import effects
from virtfleet_common.errors import StoreUnavailable
from virtfleet_common.records import (
    EVACUATION,
    ActionRecord,
    ActionState,
    Allocation,
    Cleanup,
    Fencing,
    Flavor,
    Instance,
    Move,
    Reply,
    Resources,
    Step,
    Token,
)
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import EVACUABLE, HostState, PowerState, TaskState, VmState
from virtfleet_common.store import Delivered, Expect, InstanceQuery, Mismatch, Store
from virtfleet_common.store.hosts import as_lost
from virtfleet_common.store.memory import MemoryStore
from virtfleet_common.telemetry import WRITES
from virtfleet_local.database import Database

IDLE: frozenset[TaskState | None] = frozenset({None})
SMALL = Flavor(id="1", name="m1.small", vcpus=1, ram_mb=512, disk_gb=5)
PARTS = ("instances", "actions", "hosts", "flavors", "images", "tokens", "amqp_users", "replies", "cleanups")


@pytest.fixture
async def mongodb_store(mongodb_url: str) -> AsyncIterator[Store]:
    """An empty store on a database of this suite's own."""
    async with empty_store(mongodb_url) as store:
        yield store


@pytest.fixture(params=["memory", "mongodb"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store; MongoDB is started for the first that needs it."""
    if request.param == "memory":
        yield MemoryStore()
        return
    async with empty_store(request.getfixturevalue("mongodb_url")) as store:
        yield store


@asynccontextmanager
async def empty_store(mongodb_url: str) -> AsyncIterator[Store]:
    store = Store.connect(CommonSettings(mongodb_url=mongodb_url, database="store_contract"))
    database = store.client.get_database("store_contract")
    for name in PARTS:
        await database[name].delete_many({})
    await store.prepare()
    yield store
    store.close()


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def ago(seconds: float) -> datetime:
    return now() - timedelta(seconds=seconds)


def an_instance(**fields: Any) -> Instance:
    usual: dict[str, Any] = {
        "id": str(uuid4()), "name": "web", "project_id": "p1", "user_id": "u1", "vm_state": VmState.ACTIVE,
        "host": "node1", "epoch": 1, "flavor": SMALL, "created_at": now(), "updated_at": now(),
    }  # fmt: skip
    return Instance(**usual | fields)


def a_step(name: str = "reboot_hard", host: str = "node1", seq: int = 1) -> Step:
    return Step(name=name, executor=f"compute.{host}", expects=[TaskState.REBOOTING_HARD], seq=seq)


def an_action(id_: str = "req-1", **fields: Any) -> ActionState:
    usual: dict[str, Any] = {
        "id": id_, "name": "reboot", "trace_id": "0" * 32, "user_id": "u1", "project_id": "p1", "step": a_step(),
        "started_at": now(), "expires_at": now() + timedelta(minutes=15), "original_vm_state": VmState.ACTIVE,
        "progressed_at": now(),
    }  # fmt: skip
    return ActionState(**usual | fields)


def an_event(key: str = "instance.reboot.start.x") -> effects.Effect:
    return effects.event(key, {"phase": "start"}, trace_id=None)


async def an_instance_at_work(store: Store, **fields: Any) -> Instance:
    """A stored instance whose reboot has begun; `fields` are the action's."""
    idle = await store.instances.insert(an_instance())
    await store.instances.transition(
        idle.id, expect=Expect(), set={"task_state": TaskState.REBOOTING_HARD}, begin=an_action(**fields)
    )
    begun = await store.instances.get(idle.id)
    assert begun is not None
    return begun


# The twin itself


@pytest.mark.parametrize("part", [*PARTS, "host_feed", "instance_feed"])
def test_the_twin_has_every_method_of_the_real_store(part: str) -> None:
    twin = type(getattr(MemoryStore(), part))
    real = twin.__mro__[1]
    public = {name for name, value in vars(real).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert public <= set(vars(twin))
    for name in public:
        assert _parameters(getattr(real, name)) == _parameters(getattr(twin, name))


def _parameters(method: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    return [(one.name, one.kind, one.default) for one in inspect.signature(method).parameters.values()]


# Instances: one write path


async def test_a_stored_instance_reads_back_as_it_was_written(store: Store) -> None:
    written = an_instance(
        power_state=PowerState.RUNNING, metadata={"a.b": "1", "$c": "2"}, hints={"group": ["x"]},
        networks=[{"mac": "52:54:00:00:00:01", "network": "default"}], launched_at=ago(60),
    )  # fmt: skip
    await store.instances.insert(written)
    read = await store.instances.get(written.id)
    assert read is not None
    assert read.model_dump(mode="json") == written.model_dump(mode="json")


async def test_an_unknown_instance_reads_as_none(store: Store) -> None:
    assert await store.instances.get("nobody") is None


async def test_an_instance_is_inserted_once(store: Store) -> None:
    first = await store.instances.insert(an_instance(name="first"))
    with pytest.raises(Mismatch) as lost:
        await store.instances.insert(an_instance(id=first.id, name="second"))
    assert lost.value.attribute == "id"
    assert lost.value.instance is not None
    assert lost.value.instance.name == "first"


async def test_the_effects_of_an_insert_wait_in_the_outbox_from_its_creation_on(store: Store) -> None:
    new = await store.instances.insert(an_instance(created_at=ago(5)), [an_event()])
    assert [effect["at"] for effect in new.outbox] == [new.created_at]
    assert [one.id for one in await store.instances.find_undelivered(age=1)] == [new.id]


async def test_a_transition_writes_states_action_and_effects_together(store: Store) -> None:
    idle = await store.instances.insert(an_instance())
    event, record = an_event(), effects.record("req-1", {"action": "reboot"})
    written = await store.instances.transition(
        idle.id,
        expect=Expect(task_states=IDLE),
        set={"task_state": TaskState.REBOOTING_HARD, "metadata.colour": "red"},
        begin=an_action("req-1", notes={"seen": 1}),
        effects=[event, record],
    )
    read = await store.instances.get(idle.id)
    assert read is not None
    assert written == read.model_copy(update={"outbox": ()})
    assert written.task_state is TaskState.REBOOTING_HARD
    assert written.metadata == {"colour": "red"}
    assert written.action is not None
    assert (written.action.id, written.action.step.target) == ("req-1", "compute.node1.reboot_hard")
    assert [effect["id"] for effect in read.outbox] == [event["id"], record["id"]]
    assert all(ago(60) < effect["at"] < now() + timedelta(seconds=60) for effect in read.outbox)
    assert written.rev == idle.rev + 1
    assert written.updated_at >= idle.updated_at


async def test_effects_of_later_transitions_queue_up_behind_the_earlier_ones(store: Store) -> None:
    idle = await store.instances.insert(an_instance())
    first, second = an_event("instance.a.start.x"), an_event("instance.b.start.x")
    await store.instances.transition(idle.id, expect=Expect(), effects=[first])
    await store.instances.transition(idle.id, expect=Expect(), effects=[second])
    read = await store.instances.get(idle.id)
    assert read is not None
    assert [effect["id"] for effect in read.outbox] == [first["id"], second["id"]]


async def test_the_next_step_is_unsent_and_unclaimed_and_keeps_the_notes(store: Store) -> None:
    begun = await an_instance_at_work(
        store, sent_at=ago(9), claimed_by="boot1", attempt=4, notes={"disk": "grown"}, progressed_at=ago(9)
    )
    written = await store.instances.transition(
        begun.id, expect=Expect(action_id="req-1", seq=1), step=a_step("start", "node2", seq=2)
    )
    action = written.action
    assert action is not None
    assert (action.step.target, action.step.seq) == ("compute.node2.start", 2)
    assert (action.sent_at, action.claimed_by, action.attempt) == (None, None, 1)
    assert action.notes == {"disk": "grown"}
    assert action.progressed_at > ago(9)


async def test_fields_of_the_action_that_goes_on_are_set_and_count_as_progress(store: Store) -> None:
    begun = await an_instance_at_work(store, progressed_at=ago(60))
    written = await store.instances.transition(
        begun.id, expect=Expect(action_id="req-1"), action={"claimed_by": "boot1", "notes.pid": 7}
    )
    assert written.action is not None
    assert (written.action.claimed_by, written.action.notes) == ("boot1", {"pid": 7})
    assert written.action.progressed_at > ago(60)


async def test_a_transition_that_does_not_touch_the_action_is_no_progress_of_it(store: Store) -> None:
    begun = await an_instance_at_work(store, progressed_at=ago(60))
    written = await store.instances.transition(
        begun.id, expect=Expect(), set={"power_state": PowerState.PAUSED}, effects=[an_event()]
    )
    assert written.action == begun.action


async def test_the_end_of_an_action_leaves_the_outbox_to_be_delivered(store: Store) -> None:
    begun = await an_instance_at_work(store)
    written = await store.instances.transition(
        begun.id, expect=Expect(action_id="req-1"), set={"task_state": None}, end=True, effects=[an_event()]
    )
    read = await store.instances.get(begun.id)
    assert read is not None
    assert (written.action, written.task_state, len(read.outbox)) == (None, None, 1)


async def test_a_new_action_takes_over_what_its_condition_allows(store: Store) -> None:
    begun = await an_instance_at_work(store, claimed_by="boot1")
    written = await store.instances.transition(
        begun.id, expect=Expect(task_states=frozenset({TaskState.REBOOTING_HARD})), begin=an_action("req-2")
    )
    assert written.action is not None
    assert (written.action.id, written.action.claimed_by) == ("req-2", None)
    with pytest.raises(Mismatch, match="action is req-2"):
        await store.instances.transition(begun.id, expect=Expect(action_id="req-1"), end=True)


AT_WORK: dict[str, Any] = {
    "task_states": frozenset({TaskState.REBOOTING_HARD}), "vm_states": frozenset({VmState.ACTIVE}),
    "action_id": "req-1", "seq": 1, "executor": "compute.node1", "claimed_by": "boot1", "host": "node1", "epoch": 1,
    "rev": 1,
}  # fmt: skip
BELIEFS: list[tuple[dict[str, Any], str, Any]] = [
    ({"task_states": IDLE}, "task_state", TaskState.REBOOTING_HARD),
    ({"vm_states": frozenset({VmState.STOPPED, VmState.ERROR})}, "vm_state", VmState.ACTIVE),
    ({"action_id": "req-0"}, "action", "req-1"),
    ({"seq": 2}, "step", 1),
    ({"executor": "compute.node2"}, "executor", "compute.node1"),
    ({"claimed_by": "boot0"}, "claimed_by", "boot1"),
    ({"claimed_by": ""}, "claimed_by", "boot1"),
    ({"host": "node2"}, "host", "node1"),
    ({"epoch": 2}, "epoch", 1),
    ({"rev": 0}, "rev", 1),
]


@pytest.mark.parametrize(("belief", "attribute", "value"), BELIEFS)
async def test_a_wrong_belief_writes_nothing_and_is_named(
    store: Store, belief: dict[str, Any], attribute: str, value: Any
) -> None:
    begun = await an_instance_at_work(store, claimed_by="boot1")
    with pytest.raises(Mismatch) as lost:
        await store.instances.transition(
            begun.id, expect=Expect(**AT_WORK | belief), set={"name": "changed"}, effects=[an_event()]
        )
    assert (lost.value.attribute, lost.value.value) == (attribute, value)
    assert lost.value.instance == begun
    assert await store.instances.get(begun.id) == begun


async def test_right_beliefs_of_every_field_let_the_write_through(store: Store) -> None:
    begun = await an_instance_at_work(store, claimed_by="boot1")
    assert begun.action is not None
    expect = Expect(**AT_WORK, progressed_at=begun.action.progressed_at)
    written = await store.instances.transition(begun.id, expect=expect, set={"name": "changed"})
    assert written.name == "changed"


async def test_claimed_by_nobody_is_a_belief_too(store: Store) -> None:
    begun = await an_instance_at_work(store)
    claim = Expect(action_id="req-1", claimed_by="")
    await store.instances.transition(begun.id, expect=claim, action={"claimed_by": "boot1"})
    with pytest.raises(Mismatch, match="claimed_by is boot1"):
        await store.instances.transition(begun.id, expect=claim, action={"claimed_by": "boot2"})


async def test_a_transition_of_no_instance_says_so(store: Store) -> None:
    with pytest.raises(Mismatch) as lost:
        await store.instances.transition("nobody", expect=Expect(), set={"name": "x"})
    assert (lost.value.attribute, lost.value.instance) == ("instance", None)


async def test_of_two_hundred_writers_at_once_exactly_one_wins(store: Store) -> None:
    idle = await store.instances.insert(an_instance())

    async def reboot(number: int) -> Instance | Mismatch:
        try:
            return await store.instances.transition(
                idle.id,
                expect=Expect(task_states=IDLE),
                set={"task_state": TaskState.REBOOTING_HARD},
                begin=an_action(f"req-{number}"),
                effects=[an_event()],
            )
        except Mismatch as lost:
            return lost

    outcomes = await asyncio.gather(*(reboot(number) for number in range(200)))
    won = [one for one in outcomes if isinstance(one, Instance)]
    lost = [one for one in outcomes if isinstance(one, Mismatch)]
    assert (len(won), len(lost)) == (1, 199)
    assert {one.attribute for one in lost} == {"task_state"}
    read = await store.instances.get(idle.id)
    assert read is not None
    assert read.model_copy(update={"outbox": ()}) == won[0]


# Instances: outbox, sweeps, progress


async def test_what_was_delivered_leaves_the_outbox_and_the_step_is_noted_as_sent(store: Store) -> None:
    begun = await an_instance_at_work(store)
    gone, kept = an_event(), an_event()
    await store.instances.transition(begun.id, expect=Expect(), effects=[gone, kept])
    await store.instances.mark_delivered(Delivered(begun.id, [gone["id"]], "req-1", 1))
    read = await store.instances.get(begun.id)
    assert read is not None
    assert [effect["id"] for effect in read.outbox] == [kept["id"]]
    assert read.action is not None
    assert read.action.sent_at is not None


async def test_a_step_that_was_overtaken_is_not_noted_as_sent(store: Store) -> None:
    begun = await an_instance_at_work(store)
    await store.instances.transition(begun.id, expect=Expect(), step=a_step(seq=2))
    await store.instances.mark_delivered(Delivered(begun.id, [], "req-1", 1))
    await store.instances.mark_delivered(Delivered(begun.id, [], "req-0", 2))
    read = await store.instances.get(begun.id)
    assert read is not None
    assert read.action is not None
    assert read.action.sent_at is None


async def test_many_deliveries_noted_at_once_are_all_noted(store: Store) -> None:
    stored = [await store.instances.insert(an_instance(), [an_event()]) for _ in range(40)]
    noted = [Delivered(one.id, [effect["id"] for effect in one.outbox]) for one in stored]
    await asyncio.gather(*(store.instances.mark_delivered(one) for one in noted))
    assert await store.instances.find_undelivered(age=-60) == []


async def test_unconfirmed_are_resized_guests_at_rest_on_these_hosts_whose_time_is_over(store: Store) -> None:
    def resized(seconds_ago: float | None = 5, **fields: Any) -> Instance:
        confirm_by = None if seconds_ago is None else ago(seconds_ago)
        move = Move(
            id="m", type="resize", source="node9", source_claim=None, old_vm_state=VmState.ACTIVE, confirm_by=confirm_by
        )
        return an_instance(**{"vm_state": VmState.RESIZED, "move": move, **fields})

    due = [await store.instances.insert(resized()) for _ in range(2)]
    for other in (
        resized(-60), resized(None), resized(host="node2"), resized(vm_state=VmState.ERROR),
        resized(task_state=TaskState.RESIZE_REVERTING), an_instance(),
    ):  # fmt: skip
        await store.instances.insert(other)
    found = await store.instances.find_unconfirmed(now(), {"node1", "node3"})
    assert {one.id for one in found} == {one.id for one in due}
    assert len(await store.instances.find_unconfirmed(now(), {"node1"}, limit=1)) == 1
    assert await store.instances.find_unconfirmed(now(), set()) == []


async def test_who_owes_a_clean_up_of_an_instance_is_known_until_it_is_done(store: Store) -> None:
    for id_, host, owed_for in (("m1", "node2", "i1"), ("m2", "node1", "i1"), ("m3", "node2", "i1"), ("m4", "n", "i2")):
        await store.cleanups.add(Cleanup(id=id_, host=host, instance_id=owed_for, created_at=now()))
    assert await store.cleanups.find_owing("i1") == ["node1", "node2"]
    await store.cleanups.remove("m2")
    assert await store.cleanups.find_owing("i1") == ["node2"]
    assert await store.cleanups.find_owing("i3") == []


async def test_undelivered_are_those_whose_effects_are_old_enough(store: Store) -> None:
    old = await store.instances.insert(an_instance(created_at=ago(10)), [an_event()])
    await store.instances.insert(an_instance(created_at=ago(10)))
    await store.instances.insert(an_instance(), [an_event()])
    assert [one.id for one in await store.instances.find_undelivered(age=5)] == [old.id]
    assert len(await store.instances.find_undelivered(age=-60)) == 2
    assert len(await store.instances.find_undelivered(age=-60, limit=1)) == 1


async def test_stalled_are_steps_unsent_for_a_while_or_without_progress_for_long(store: Store) -> None:
    unsent = await an_instance_at_work(store, progressed_at=ago(5))
    stuck = await an_instance_at_work(store, progressed_at=ago(60), sent_at=ago(60), claimed_by="boot1")
    never_noted = await an_instance_at_work(store, progressed_at=ago(60), claimed_by="boot1")
    await an_instance_at_work(store, progressed_at=ago(60), sent_at=ago(5), claimed_by="boot1")
    await an_instance_at_work(store, progressed_at=ago(5), sent_at=ago(5))
    await an_instance_at_work(store, progressed_at=ago(5), claimed_by="boot1")
    await an_instance_at_work(store)
    await store.instances.insert(an_instance())
    found = await store.instances.find_stalled(unsent=2, allowance=30)
    assert {one.id for one in found} == {unsent.id, stuck.id, never_noted.id}
    assert len(await store.instances.find_stalled(unsent=2, allowance=30, limit=1)) == 1


async def test_renewing_keeps_a_step_from_being_found_stalled(store: Store) -> None:
    begun = await an_instance_at_work(store, progressed_at=ago(60), sent_at=ago(60), claimed_by="boot1")
    assert await store.instances.renew(begun.id, Expect(action_id="req-1", seq=1, claimed_by="boot1"))
    assert await store.instances.find_stalled(unsent=2, allowance=30) == []


async def test_only_the_owner_of_a_step_renews_it(store: Store) -> None:
    begun = await an_instance_at_work(store, progressed_at=ago(60), claimed_by="boot1")
    assert not await store.instances.renew(begun.id, Expect(action_id="req-1", seq=1, claimed_by="boot0"))
    assert not await store.instances.renew("nobody", Expect())
    assert await store.instances.get(begun.id) == begun


async def test_an_executor_finds_what_it_had_claimed_under_earlier_boots(store: Store) -> None:
    earlier = await an_instance_at_work(store, claimed_by="boot1")
    await an_instance_at_work(store, claimed_by="boot2")
    await an_instance_at_work(store)
    await an_instance_at_work(store, claimed_by="boot1", step=a_step(host="node2"))
    found = await store.instances.find_claimed_before("compute.node1", "boot2")
    assert [one.id for one in found] == [earlier.id]


# Instances: lists


async def test_a_list_is_newest_first_and_without_deleted_ones(store: Store) -> None:
    for name, seconds, state in (
        ("old", 30, VmState.ACTIVE),
        ("gone", 20, VmState.DELETED),
        ("new", 10, VmState.ERROR),
    ):
        await store.instances.insert(an_instance(name=name, created_at=ago(seconds), vm_state=state))

    async def names(is_deleted: bool | None) -> list[str]:
        return [one.name for one in await store.instances.find(InstanceQuery(is_deleted=is_deleted))]

    assert await names(False) == ["new", "old"]
    assert await names(True) == ["gone"]
    assert await names(None) == ["new", "gone", "old"]


LIST_FILTERS: list[dict[str, Any]] = [
    {"project_id": "p2"},
    {"vm_states": frozenset({VmState.STOPPED, VmState.ERROR})},
    {"task_states": frozenset({TaskState.POWERING_OFF})},
    {"task_states": frozenset({TaskState.POWERING_OFF, TaskState.POWERING_ON}), "project_id": "p2"},
    {"host": "node2"},
    {"name_pattern": "^other-[0-9]"},
    {"flavor_id": "2"},
    {"image_id": "i2"},
    {"reservation_id": "r-2"},
    {"changed_since": ago(60)},
]


@pytest.mark.parametrize("wanted", LIST_FILTERS)
async def test_a_list_holds_only_what_its_filter_asks_for(store: Store, wanted: dict[str, Any]) -> None:
    await store.instances.insert(an_instance(updated_at=ago(3600)))
    image = {
        "id": "i2", "name": "x", "location": "/x", "checksum": "sha256:0", "created_at": now(), "updated_at": now(),
    }  # fmt: skip
    other = an_instance(
        project_id="p2", vm_state=VmState.STOPPED, task_state=TaskState.POWERING_OFF, host="node2", name="other-1",
        flavor=SMALL.model_copy(update={"id": "2"}), image=image, reservation_id="r-2",
    )  # fmt: skip
    await store.instances.insert(other)
    assert [one.name for one in await store.instances.find(InstanceQuery(**wanted))] == ["other-1"]


async def test_pages_follow_one_another_without_gap_or_repetition(store: Store) -> None:
    same_moment = ago(10)
    for number in range(7):
        await store.instances.insert(an_instance(id=f"i{number}", created_at=same_moment))
    seen: list[str] = []
    after: Instance | None = None
    while page := await store.instances.find(InstanceQuery(after=after, limit=3)):
        seen += [one.id for one in page]
        after = page[-1]
    assert seen == ["i6", "i5", "i4", "i3", "i2", "i1", "i0"]


async def test_a_host_is_asked_for_all_that_the_record_places_on_it(store: Store) -> None:
    here = await store.instances.insert(an_instance())
    await store.instances.insert(an_instance(host="node2"))
    await store.instances.insert(an_instance(vm_state=VmState.DELETED))
    assert [one.id for one in await store.instances.find_on_host("node1")] == [here.id]


async def test_instances_are_found_by_their_ids_deleted_ones_too(store: Store) -> None:
    live = await store.instances.insert(an_instance())
    gone = await store.instances.insert(an_instance(vm_state=VmState.DELETED))
    await store.instances.insert(an_instance())
    found = await store.instances.find_ids([live.id, gone.id, "nobody"])
    assert {one.id for one in found} == {live.id, gone.id}
    assert await store.instances.find_ids([]) == []


# Host loss


def a_move(type_: str = EVACUATION, source: str = "node1") -> Move:
    return Move(id=str(uuid4()), type=type_, source=source, source_claim=None, old_vm_state=VmState.ACTIVE)


async def test_open_evacuations_are_found_by_their_source_wherever_the_instance_is(store: Store) -> None:
    before = await store.instances.insert(an_instance(move=a_move()))
    after = await store.instances.insert(an_instance(host="node2", move=a_move()))
    await store.instances.insert(an_instance(move=a_move(source="node2")))
    await store.instances.insert(an_instance(move=a_move("resize")))
    await store.instances.insert(an_instance())
    assert {one.id for one in await store.instances.find_evacuating("node1")} == {before.id, after.id}
    assert await store.instances.count_evacuating() == 3


@pytest.mark.parametrize(
    ("fields", "if_wanted", "if_not"),
    [
        ({}, True, False),
        ({"metadata": {"ha": "true"}}, True, True),
        ({"metadata": {"ha": "false"}}, False, False),
        ({"metadata": {"ha": "perhaps"}}, True, False),
        ({"host": "node2", "metadata": {"ha": "true"}}, True, True),
        ({"host": "node3"}, False, False),
        ({"task_state": TaskState.REBOOTING}, False, False),
        ({"move": a_move("resize")}, False, False),
        *[({"vm_state": state}, state in EVACUABLE, False) for state in VmState],
    ],
)
async def test_what_may_be_evacuated_is_idle_and_wanted(
    store: Store, fields: dict[str, Any], if_wanted: bool, if_not: bool
) -> None:
    await store.instances.insert(an_instance(**fields))
    for is_wanted, expected in ((True, if_wanted), (False, if_not)):
        assert len(await store.instances.find_evacuable(["node1", "node2"], is_wanted=is_wanted)) == expected
        assert await store.instances.find_evacuable([], is_wanted=is_wanted) == []


async def test_no_more_than_the_limit_are_said_to_be_evacuable(store: Store) -> None:
    for _ in range(3):
        await store.instances.insert(an_instance())
    assert len(await store.instances.find_evacuable(["node1"], is_wanted=True, limit=2)) == 2


async def test_what_is_at_work_is_found_by_the_executor_of_its_step(store: Store) -> None:
    here = await an_instance_at_work(store)
    there = await an_instance_at_work(store, step=a_step(host="node2"))
    await an_instance_at_work(store, step=a_step(host="node10"))
    await store.instances.insert(an_instance())
    found = await store.instances.find_at(["compute.node1", "compute.node2"])
    assert {one.id for one in found} == {here.id, there.id}
    assert await store.instances.find_at([]) == []


async def test_whoever_read_an_idle_instance_before_its_host_came_back_loses(store: Store) -> None:
    idle = await store.instances.insert(an_instance())
    busy = await an_instance_at_work(store)
    elsewhere = await store.instances.insert(an_instance(host="node2"))
    gone = await store.instances.insert(an_instance(vm_state=VmState.DELETED))
    assert await store.instances.touch_on_host("node1") == 1
    with pytest.raises(Mismatch):
        await store.instances.transition(idle.id, expect=Expect(rev=idle.rev), set={"name": "late"})
    for other in (busy, elsewhere, gone):
        await store.instances.transition(other.id, expect=Expect(rev=other.rev), set={"name": "in time"})


# The history of actions

HISTORY = [
    effects.opened("req-1", instance_id="i1", action="reboot", user_id="u1", project_id="p1", start=ago(9)),
    effects.step_started("req-1", 1, name="compute_reboot_instance", host="node1", at=ago(8)),
    effects.step_finished("req-1", 1, at=ago(2), result="Success"),
    effects.closed("req-1", at=ago(1), result="Success"),
]


async def test_the_history_is_the_same_in_whatever_order_and_however_often_it_is_put(store: Store) -> None:
    written: list[ActionRecord] = []
    for number, order in enumerate(permutations(HISTORY)):
        for effect in (*order, order[0]):
            await store.actions.put(f"req-{number}", effect["fields"])
            assert await store.actions.get(f"req-{number}") is not None
        found = await store.actions.get(f"req-{number}")
        assert found is not None
        written.append(found.model_copy(update={"id": "req"}))
    assert all(one == written[0] for one in written)
    assert (written[0].action, written[0].result) == ("reboot", "Success")
    assert written[0].events["1"].event == "compute_reboot_instance"
    assert written[0].events["1"].finish == HISTORY[2]["fields"]["events.1.finish"]


async def test_history_put_by_many_at_once_is_complete(store: Store) -> None:
    puts = (store.actions.put("req-1", {f"events.{seq}.event": f"step {seq}"}) for seq in range(50))
    await asyncio.gather(*puts)
    found = await store.actions.get("req-1")
    assert found is not None
    assert len(found.events) == 50


async def test_the_actions_of_an_instance_are_listed_newest_first(store: Store) -> None:
    for id_, instance, seconds in (("req-1", "i1", 9), ("req-2", "i1", 5), ("req-3", "i2", 1)):
        await store.actions.put(id_, {"instance_id": instance, "start": ago(seconds)})
    assert [one.id for one in await store.actions.find("i1")] == ["req-2", "req-1"]
    assert [one.id for one in await store.actions.find("i1", limit=1)] == ["req-2"]
    assert await store.actions.get("req-4") is None


# Hosts and claims


async def a_host(store: Store, name: str = "node1", *, vcpus: float = 8, **facts: Any) -> None:
    limits = Resources(vcpus=vcpus, ram_mb=vcpus * 512, disk_gb=vcpus * 5)
    await store.hosts.register(name, uuid=f"uuid of {name}", limits=limits, facts={"boot_id": "boot1", **facts})


def an_allocation(claim: str = "req-1:1", instance_id: str = "i1", vcpus: int = 1) -> Allocation:
    return Allocation(claim=claim, instance_id=instance_id, vcpus=vcpus, ram_mb=vcpus * 512, disk_gb=vcpus * 5)


async def free_vcpus(store: Store, name: str = "node1") -> float:
    host = await store.hosts.get(name)
    assert host is not None
    return host.free.vcpus


async def test_a_new_host_is_up_empty_and_may_be_claimed_on(store: Store) -> None:
    await a_host(store, host_ip="10.0.0.1", total={"vcpus": 4, "ram_mb": 4096, "disk_gb": 40})
    host = await store.hosts.get("node1")
    assert host is not None
    assert (host.state, host.is_enabled, host.is_responsive, host.sequence) == (HostState.UP, True, True, 0)
    assert host.free == host.limits == Resources(vcpus=8, ram_mb=4096, disk_gb=40)
    assert (host.host_ip, host.total.vcpus, host.boot_id) == ("10.0.0.1", 4, "boot1")
    assert host.last_seen is not None
    assert host.created_at is not None
    assert await store.hosts.claim("node1", an_allocation())


async def test_a_host_that_comes_back_keeps_its_allocations_and_what_people_set(store: Store) -> None:
    await a_host(store)
    first = await store.hosts.get("node1")
    await store.hosts.claim("node1", an_allocation(vcpus=3))
    await store.hosts.set_fields("node1", {"is_enabled": False, "state": HostState.DOWN})
    await a_host(store, vcpus=4, boot_id="boot2")
    host = await store.hosts.get("node1")
    assert host is not None
    assert first is not None
    assert [one.claim for one in host.allocations] == ["req-1:1"]
    assert (host.limits.vcpus, host.free.vcpus, host.free.ram_mb) == (4, 1, 512)
    assert (host.is_enabled, host.state, host.created_at) == (False, HostState.UP, first.created_at)


async def test_a_host_that_is_forced_down_stays_so_when_its_agent_registers(store: Store) -> None:
    await a_host(store)
    await store.hosts.set_fields("node1", {"is_forced_down": True, **as_lost(datetime.now(UTC))})
    await a_host(store, boot_id="boot2")
    host = await store.hosts.get_brief("node1")
    assert host is not None
    assert (host.state, host.is_forced_down, host.allocations) == (HostState.DOWN, True, ())


async def test_limits_below_what_is_allocated_leave_no_room_and_harm_no_allocation(store: Store) -> None:
    await a_host(store)
    await store.hosts.claim("node1", an_allocation(vcpus=3))
    await a_host(store, vcpus=2)
    assert await free_vcpus(store) == -1
    assert not await store.hosts.claim("node1", an_allocation("req-2:1", "i2"))
    assert await store.hosts.release("i1", "req-1:1") == 1
    assert await free_vcpus(store) == 2


async def test_a_claim_takes_its_size_from_what_is_free(store: Store) -> None:
    await a_host(store)
    assert await store.hosts.claim("node1", an_allocation(vcpus=3))
    host = await store.hosts.get("node1")
    assert host is not None
    assert host.free == Resources(vcpus=5, ram_mb=5 * 512, disk_gb=25)
    assert list(host.allocations) == [an_allocation(vcpus=3)]
    assert await store.hosts.find_claim("req-1:1") == "node1"


@pytest.mark.parametrize("kind", ["vcpus", "ram_mb", "disk_gb"])
async def test_a_claim_needs_room_of_every_kind(store: Store, kind: str) -> None:
    await a_host(store)
    full = an_allocation(vcpus=8)
    assert not await store.hosts.claim("node1", full.model_copy(update={kind: getattr(full, kind) + 1}))
    assert await store.hosts.claim("node1", full)


async def test_a_claim_of_no_disk_fits_a_host_without_disk(store: Store) -> None:
    await store.hosts.register("node1", uuid="u", limits=Resources(vcpus=1, ram_mb=512), facts={})
    assert await store.hosts.claim("node1", an_allocation().model_copy(update={"disk_gb": 0}))


@pytest.mark.parametrize(
    "fields", [{"state": "down"}, {"state": "unknown"}, {"is_enabled": False}, {"is_responsive": False}]
)
async def test_a_host_that_is_not_fit_refuses_new_claims_and_keeps_old_ones(
    store: Store, fields: dict[str, Any]
) -> None:
    await a_host(store)
    assert await store.hosts.claim("node1", an_allocation())
    assert await store.hosts.set_fields("node1", fields)
    assert not await store.hosts.claim("node1", an_allocation("req-2:1", "i2"))
    assert await store.hosts.claim("node1", an_allocation())
    assert await free_vcpus(store) == 7


async def test_an_unknown_host_refuses_claims(store: Store) -> None:
    assert not await store.hosts.claim("node1", an_allocation())
    assert await store.hosts.find_claim("req-1:1") is None


async def test_the_same_claim_again_is_the_same_claim(store: Store) -> None:
    await a_host(store)
    assert all(await asyncio.gather(*(store.hosts.claim("node1", an_allocation()) for _ in range(10))))
    assert await free_vcpus(store) == 7


async def test_of_fifty_claims_at_once_a_host_takes_those_it_has_room_for(store: Store) -> None:
    await a_host(store, vcpus=7)
    claims = (store.hosts.claim("node1", an_allocation(f"req-{n}:1", f"i{n}")) for n in range(50))
    taken = await asyncio.gather(*claims)
    assert sum(taken) == 7
    host = await store.hosts.get("node1")
    assert host is not None
    assert (host.free.vcpus, len(host.allocations)) == (0, 7)


async def test_a_claim_is_given_back_exactly_once(store: Store) -> None:
    await a_host(store)
    await store.hosts.claim("node1", an_allocation(vcpus=3))
    given_back = await asyncio.gather(*(store.hosts.release("i1", "req-1:1") for _ in range(10)))
    assert sum(given_back) == 1
    assert await store.hosts.release("i1", "req-1:1") == 0
    host = await store.hosts.get("node1")
    assert host is not None
    assert (host.free, list(host.allocations)) == (host.limits, [])


async def test_a_release_by_claim_leaves_the_other_claims_of_the_instance(store: Store) -> None:
    await a_host(store)
    await store.hosts.claim("node1", an_allocation("req-1:1"))
    await store.hosts.claim("node1", an_allocation("req-2:1"))
    assert await store.hosts.release("i1", "req-1:1") == 1
    assert await store.hosts.release("i2", "req-2:1") == 0
    assert await store.hosts.find_claim("req-2:1") == "node1"


async def test_a_release_by_instance_gives_back_all_it_holds_anywhere(store: Store) -> None:
    await a_host(store, "node1")
    await a_host(store, "node2")
    await store.hosts.claim("node1", an_allocation("req-1:1"))
    await store.hosts.claim("node2", an_allocation("req-2:1", vcpus=2))
    await store.hosts.claim("node2", an_allocation("req-3:1", "i2"))
    assert await store.hosts.release("i1") == 2
    assert (await free_vcpus(store, "node1"), await free_vcpus(store, "node2")) == (8, 7)


async def test_only_newer_heartbeats_of_the_current_boot_are_taken(store: Store) -> None:
    await a_host(store)

    async def taken(boot: str, sequence: int) -> bool:
        guests = sequence * 10
        await store.hosts.put_seen({"node1": {"boot_id": boot, "sequence": sequence, "guests": guests}})
        host = await store.hosts.get("node1")
        assert host is not None
        return (host.boot_id, host.sequence, host.guests) == (boot, sequence, guests)

    assert await taken("boot1", 2)
    assert not await taken("boot1", 1)
    assert not await taken("boot0", 9)
    assert await taken("boot1", 3)
    await a_host(store, boot_id="boot2")
    assert not await taken("boot1", 4)
    assert await taken("boot2", 1)


async def test_a_heartbeat_of_an_unknown_host_makes_no_host(store: Store) -> None:
    await store.hosts.put_seen({"node9": {"boot_id": "boot1", "sequence": 1}})
    await store.hosts.put_seen({})
    assert await store.hosts.get("node9") is None


async def test_a_heartbeat_moves_the_time_the_host_was_seen(store: Store) -> None:
    await a_host(store)
    await store.hosts.set_fields("node1", {"last_seen": ago(3600)})
    await store.hosts.put_seen({"node1": {"boot_id": "boot1", "sequence": 1}})
    host = await store.hosts.get("node1")
    assert host is not None
    assert host.last_seen is not None
    assert host.last_seen > ago(3600)


async def test_fields_of_a_host_are_set_if_it_is_as_it_was(store: Store) -> None:
    await a_host(store)
    assert await store.hosts.set_fields("node1", {"state": HostState.DOWN}, was={"state": HostState.UP})
    assert not await store.hosts.set_fields("node1", {"state": HostState.DOWN}, was={"state": HostState.UP})
    assert not await store.hosts.set_fields("node9", {"state": HostState.DOWN})
    assert await store.hosts.get_state("node1") is HostState.DOWN
    assert await store.hosts.get_state("node9") is None


async def test_a_brief_host_is_the_host_without_its_lists(store: Store) -> None:
    await a_host(store)
    await store.hosts.claim("node1", an_allocation())
    await store.hosts.note_failure("node1", "req-1:1")
    whole, brief = await store.hosts.get("node1"), await store.hosts.get_brief("node1")
    assert whole is not None
    assert brief is not None
    assert (len(whole.allocations), len(whole.failures), brief.placed) == (1, 1, 1)
    assert brief.model_dump() == whole.model_copy(update={"allocations": (), "failures": ()}).model_dump()
    assert await store.hosts.get_brief("node9") is None


async def test_the_last_that_was_heard_may_be_of_any_host(store: Store) -> None:
    assert await store.hosts.get_last_heard() is None
    for name in ("node1", "node2"):
        await a_host(store, name)
    await store.hosts.put_seen({"node1": {"boot_id": "boot1", "sequence": 9}})
    heard = await store.hosts.get_brief("node1")
    assert heard is not None
    assert await store.hosts.get_last_heard() == heard.last_seen


async def test_a_lost_host_has_no_registration_and_no_proof_until_it_registers_anew(store: Store) -> None:
    await a_host(store)
    await store.hosts.set_fields("node1", as_lost(datetime.now(UTC)))
    await store.hosts.set_fields("node1", {"fence": {"proof": "silence", "at": now()}}, was={"fence": None})
    lost = await store.hosts.get_brief("node1")
    assert lost is not None
    assert (lost.state, lost.boot_id, lost.fence is None) == (HostState.DOWN, None, False)
    await a_host(store, boot_id="boot2")
    back = await store.hosts.get_brief("node1")
    assert back is not None
    assert (back.state, back.fence, back.lost_at) == (HostState.UP, None, None)


async def test_of_two_who_lease_the_fencing_of_one_loss_one_gets_it(store: Store) -> None:
    await a_host(store)
    await store.hosts.set_fields("node1", as_lost(datetime.now(UTC)))
    for was in (None, ago(60)):  # nobody ever did, and somebody did and died
        if was is not None:
            await store.hosts.set_fields("node1", {"fencing.until": was})
        lost = await store.hosts.get_brief("node1")
        assert lost is not None
        this = {"state": HostState.DOWN, "lost_at": lost.lost_at, "fence": None, "fencing.until": was}
        leases = [
            Fencing(lost_at=lost.lost_at, attempts=1, by=by, until=now() + timedelta(seconds=offset))
            for offset, by in enumerate("ab")
        ]
        writes = [store.hosts.set_fields("node1", {"fencing": one.model_dump()}, was=this) for one in leases]
        assert sorted(await asyncio.gather(*writes)) == [False, True]


async def test_a_host_is_removed_if_it_is_as_it_was(store: Store) -> None:
    await a_host(store)
    await store.hosts.claim("node1", an_allocation())
    assert not await store.hosts.remove("node1", was={"placed": 0})
    await store.hosts.release("i1")
    assert await store.hosts.remove("node1", was={"placed": 0})
    assert not await store.hosts.remove("node1", was={})
    assert await store.hosts.get("node1") is None


async def test_the_list_of_hosts_is_in_order_and_leaves_the_allocations_out(store: Store) -> None:
    await a_host(store, "node2")
    await a_host(store, "node1")
    await store.hosts.claim("node1", an_allocation())
    hosts = await store.hosts.find()
    assert [(one.id, one.free.vcpus, list(one.allocations)) for one in hosts] == [("node1", 7, []), ("node2", 8, [])]


# Catalogues


async def test_a_catalogue_takes_an_id_and_a_name_once(store: Store) -> None:
    assert await store.flavors.add(SMALL)
    assert not await store.flavors.add(SMALL.model_copy(update={"name": "other"}))
    assert not await store.flavors.add(SMALL.model_copy(update={"id": "2"}))
    assert await store.flavors.add(SMALL.model_copy(update={"id": "2", "name": "other"}))
    assert await store.flavors.get("1") == SMALL
    assert await store.flavors.get("3") is None


async def test_a_catalogue_finds_by_value_or_by_any_of_several_in_order_of_id(store: Store) -> None:
    for id_, name, vcpus in (("3", "c", 1), ("1", "a", 1), ("2", "b", 2)):
        await store.flavors.add(SMALL.model_copy(update={"id": id_, "name": name, "vcpus": vcpus}))
    assert [one.id for one in await store.flavors.find()] == ["1", "2", "3"]
    assert [one.id for one in await store.flavors.find({"vcpus": 1})] == ["1", "3"]
    assert [one.id for one in await store.flavors.find({"name": ["b", "c"], "vcpus": 1})] == ["3"]


async def test_a_document_is_replaced_whole_and_deleted_once(store: Store) -> None:
    token = Token(
        id="hash", user_id="u1", user_name="u", project_id="p1", project_name="p", roles=["member"], expires_at=now()
    )
    await store.tokens.replace(token)
    await store.tokens.replace(token.model_copy(update={"roles": ["admin"], "expires_at": None}))
    read = await store.tokens.get("hash")
    assert read is not None
    assert (list(read.roles), read.expires_at) == (["admin"], None)
    assert await store.tokens.delete("hash")
    assert not await store.tokens.delete("hash")


async def test_the_first_reply_is_kept(store: Store) -> None:
    first = Reply(id="m1", type="accepted", data={"action_id": "req-1"}, at=now())
    assert await store.replies.add(first)
    assert not await store.replies.add(first.model_copy(update={"type": "rejected"}))
    assert await store.replies.get("m1") == first


# The real one alone


async def test_preparing_again_with_another_retention_moves_the_limit(mongodb_url: str) -> None:
    for retention in (60.0, 120.0):
        settings = CommonSettings(mongodb_url=mongodb_url, database="store_retention", deleted_retention=retention)
        store = Store.connect(settings)
        await store.prepare()
        indexes = await store.client.get_database("store_retention")["instances"].index_information()
        store.close()
        assert indexes["deleted_at_1"]["expireAfterSeconds"] == retention


async def test_a_database_that_is_away_is_unavailable_not_an_unknown_error() -> None:
    store = Store.connect(CommonSettings(mongodb_url="mongodb://127.0.0.1:1/", store_timeout=0.2))
    with pytest.raises(StoreUnavailable):
        await store.ping()
    with pytest.raises(StoreUnavailable):
        await store.instances.get("i1")
    with pytest.raises(StoreUnavailable):
        await store.actions.put("req-1", {"result": "Success"})
    with pytest.raises(StoreUnavailable):
        await store.prepare()
    store.close()


async def test_writes_outlive_the_election_of_another_primary(mongodb_store: Store, database: Database) -> None:
    idle = await mongodb_store.instances.insert(an_instance())
    election = asyncio.create_task(asyncio.to_thread(database.step_down))
    writes = 0
    while not election.done() or writes < 10:
        written = await mongodb_store.instances.transition(idle.id, expect=Expect(rev=writes), effects=[an_event()])
        writes += 1
        assert written.rev == writes
    await election
    read = await mongodb_store.instances.get(idle.id)
    assert read is not None
    assert (read.rev, len(read.outbox)) == (writes, writes)


async def test_a_write_that_is_refused_does_not_fail_those_it_was_gathered_with(mongodb_store: Store) -> None:
    first = mongodb_store.actions.put(f"req-{uuid4()}", {"result": "Success"})
    bad = mongodb_store.actions.put("req-bad", {"events.1": "x", "events.1.event": "y"})
    good_id = f"req-{uuid4()}"
    good = mongodb_store.actions.put(good_id, {"result": "Success"})
    outcomes = await asyncio.gather(first, bad, good, return_exceptions=True)
    assert [type(one) for one in outcomes] == [type(None), StoreUnavailable, type(None)]
    assert await mongodb_store.actions.get(good_id) is not None


async def test_confirmed_write_commands_are_counted(mongodb_store: Store) -> None:
    def counted(command: str) -> float:
        return float(WRITES.labels(command)._value.get())

    before = counted("insert"), counted("findAndModify")
    stored = await mongodb_store.instances.insert(an_instance())
    await mongodb_store.instances.get(stored.id)
    await mongodb_store.instances.transition(stored.id, expect=Expect(), set={"name": "x"})
    assert (counted("insert"), counted("findAndModify")) == (before[0] + 1, before[1] + 1)
