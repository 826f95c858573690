"""What a move leaves when one of its steps is given up, and what an evacuation writes at its turns."""

from typing import Any

import pytest
from virtfleet_common import moves
from virtfleet_common.records import EVACUATION, ActionState, Instance, Move
from virtfleet_common.states import VmState
from virtfleet_common.steps import make_step

from tests.unit.records import FLAVOR, NOW, an_instance

MOVE = Move(
    id="m-1", type="resize", source="host-1", source_claim="c-1", old_vm_state=VmState.ACTIVE, destination="host-2",
    claim="c-2",
)  # fmt: skip


def told(turn: moves.Turn, kind: str, *names: str) -> list[tuple[Any, ...]]:
    """The effects of one kind, as these fields of theirs."""
    return [tuple(one.get(kind, one)[name] for name in names) for one in turn.effects if one["kind"] == kind]


@pytest.mark.parametrize(
    ("step", "host", "is_put_back", "vm_state", "is_open", "cleaned"),
    [
        ("select_destination", "host-1", False, None, False, ["host-2"]),
        ("prepare", "host-1", False, None, False, ["host-2"]),
        ("move", "host-1", True, None, False, ["host-2"]),
        ("move", "host-1", False, VmState.ERROR, False, ["host-2"]),
        ("finish", "host-2", False, VmState.ERROR, True, []),
        ("revert", "host-2", False, None, True, []),
        ("finish_revert", "host-1", False, VmState.ERROR, False, ["host-2"]),
    ],
)
def test_a_move_that_is_given_up_is_never_left_half_open(
    step: str, host: str, is_put_back: bool, vm_state: VmState | None, is_open: bool, cleaned: list[str]
) -> None:
    instance = an_instance(host=host, move=MOVE)
    turn = moves.given_up(instance, step, NOW, is_put_back=is_put_back)
    assert turn.set.get("vm_state") == vm_state
    assert ("move" not in turn.set) is is_open
    owed = [effect["cleanup"] for effect in turn.effects if effect["kind"] == "cleanup"]
    assert [one["host"] for one in owed] == cleaned
    assert all(one["claim"] == "c-2" for one in owed)


def an_action(step: str, **more: Any) -> ActionState:
    return ActionState(
        id="req-1", name="something", trace_id="1" * 32, user_id="u", project_id="p", step=make_step(step, "host-1"),
        started_at=NOW, expires_at=NOW, original_vm_state=VmState.ACTIVE, progressed_at=NOW, **more,
    )  # fmt: skip


@pytest.mark.parametrize("said", [VmState.ACTIVE, VmState.ERROR])
@pytest.mark.parametrize(
    ("step", "host", "owner", "is_open", "cleaned"),
    [
        ("select_destination", "host-1", "host-1", False, ["host-2"]),
        ("prepare", "host-1", "host-1", False, ["host-2"]),
        ("move", "host-1", "host-1", False, ["host-2"]),
        ("finish", "host-2", "host-2", True, []),
        ("revert", "host-2", "host-2", True, []),
        ("finish_revert", "host-1", "host-1", False, ["host-2"]),
        (None, "host-2", "host-2", True, []),
        ("reboot_hard", "host-2", "host-2", True, []),
        ("delete", "host-1", "host-1", False, ["host-2"]),
        ("delete", "host-2", "host-2", True, []),
    ],
)
def test_a_move_that_an_admin_resets_is_given_up_or_waits_for_its_owner(
    step: str | None, host: str, owner: str, is_open: bool, cleaned: list[str], said: VmState
) -> None:
    action = an_action(step) if step else None
    instance = an_instance(host=host, move=MOVE, vm_state=VmState.RESIZED, action=action, old_flavor=FLAVOR)
    turn = moves.reset(instance, said, NOW)
    after = instance.model_copy(update=dict(turn.set))
    assert (after.host, after.task_state, moves.is_undecided(after)) == (owner, None, is_open)
    assert after.vm_state is (VmState.RESIZED if is_open and said is VmState.ACTIVE else said)
    assert told(turn, "cleanup", "host", "claim") == [(one, "c-2") for one in cleaned]
    assert (after.move, after.old_flavor, after.new_flavor) == ((MOVE, FLAVOR, None) if is_open else (None, None, None))
    assert [kind for kind in ("migration", "quota") if told(turn, kind)] == ([] if is_open else ["migration", "quota"])


@pytest.mark.parametrize("step", ["select_shelter", "shelter", "delete"])
@pytest.mark.parametrize("is_switched", [False, True])
def test_an_evacuation_that_an_admin_resets_can_be_tried_again(step: str, is_switched: bool) -> None:
    begun = on_its_destination if is_switched else on_its_source
    instance = begun(action=an_action(step), vm_state=VmState.ERROR)
    turn = moves.reset(instance, VmState.ACTIVE, NOW)
    after = instance.model_copy(update=dict(turn.set))
    assert (after.host, after.claim, after.move) == ("host-1", "c-1", None)
    assert (after.vm_state, after.task_state) == (VmState.ACTIVE, None)
    assert told(turn, "release", "claim") == [("c-2",)]
    assert told(turn, "cleanup", "host") == ([("host-2",)] if is_switched else [])


def test_a_reset_of_an_instance_that_is_not_moved_says_what_it_is_and_no_more() -> None:
    for action in (None, an_action("reboot_hard")):
        turn = moves.reset(an_instance(vm_state=VmState.ERROR, action=action), VmState.ACTIVE, NOW)
        assert (turn.set, turn.effects) == ({"vm_state": VmState.ACTIVE, "task_state": None}, [])


def test_an_action_that_is_no_move_leaves_nothing_of_one() -> None:
    turn = moves.given_up(an_instance(), "reboot_hard", NOW, is_put_back=False)
    assert (turn.set, turn.effects) == ({}, [])


# Evacuation: the source is lost, so it keeps its claim until the guest lives elsewhere

EVACUATED = MOVE.model_copy(update={"type": EVACUATION})


def on_its_source(**more: Any) -> Instance:
    return an_instance(**{"host": "host-1", "claim": "c-1", "epoch": 3, "move": EVACUATED, **more})


def on_its_destination(**more: Any) -> Instance:
    return on_its_source(**{"host": "host-2", "claim": "c-2", "epoch": 4, **more})


def statuses(turn: moves.Turn) -> list[str]:
    return [one["fields"]["status"] for one in turn.effects if one["kind"] == "migration"]


def test_an_evacuation_begins_as_accepted_and_knows_what_it_leaves() -> None:
    stopped = on_its_source(move=None, vm_state=VmState.STOPPED)
    turn = moves.begun(stopped, an_action("select_shelter"), EVACUATION)
    move = Move.model_validate(turn.set["move"])
    assert (move.type, move.source, move.source_claim, move.old_vm_state) == (EVACUATION, "host-1", "c-1", "stopped")
    assert (move.destination, move.claim, move.is_shared) == (None, None, None)
    assert statuses(turn) == ["accepted"]


def test_its_destination_owns_an_evacuated_instance_before_anything_is_started() -> None:
    turn = moves.sheltering(on_its_source(), EVACUATED, is_shared=True)
    assert turn.set == {"host": "host-2", "epoch": 4, "claim": "c-2", "move.is_shared": True}
    assert turn.effects == []


def test_an_evacuated_guest_gives_its_old_place_back_and_leaves_a_debt_there() -> None:
    shared = EVACUATED.model_copy(update={"is_shared": True})
    turn = moves.sheltered(on_its_destination(move=shared), shared, NOW)
    assert turn.set == {"move": None}
    assert statuses(turn) == ["done"]
    assert told(turn, "release", "instance_id", "claim") == [("i-1", "c-1")]
    assert told(turn, "cleanup", "host", "claim", "is_shared", "migration_id") == [("host-1", None, True, "m-1")]


def test_a_destination_that_refuses_an_evacuation_before_the_switch_owes_nothing() -> None:
    turn = moves.refused(on_its_source(), EVACUATED, NOW)
    assert turn.set == {"move.destination": None, "move.claim": None, "move.is_shared": None}
    assert told(turn, "release", "claim") == [("c-2",)]
    assert told(turn, "cleanup", "host") == []


def test_a_destination_that_refuses_an_evacuation_after_the_switch_gives_the_instance_back() -> None:
    turn = moves.refused(on_its_destination(), EVACUATED, NOW)
    assert (turn.set["host"], turn.set["epoch"], turn.set["claim"]) == ("host-1", 5, "c-1")
    assert told(turn, "release", "claim") == [("c-2",)]
    assert told(turn, "cleanup", "host", "migration_id") == [("host-2", "m-1")]


@pytest.mark.parametrize("step", ["select_shelter", "shelter"])
@pytest.mark.parametrize("is_switched", [False, True])
def test_an_evacuation_that_is_given_up_leaves_the_instance_with_its_source(step: str, is_switched: bool) -> None:
    instance = on_its_destination() if is_switched else on_its_source()
    turn = moves.given_up(instance, step, NOW, is_put_back=False)
    after = instance.model_copy(update=dict(turn.set))
    assert (after.host, after.claim, after.move, after.vm_state) == ("host-1", "c-1", None, instance.vm_state)
    assert after.epoch == (5 if is_switched else 3)
    assert statuses(turn) == ["error"]
    assert told(turn, "release", "claim") == [("c-2",)]
    assert told(turn, "cleanup", "host") == ([("host-2",)] if is_switched else [])


def test_an_instance_that_is_deleted_during_its_evacuation_is_owed_a_cleaning_by_both_hosts() -> None:
    turn = moves.deleted(on_its_destination(), NOW, is_cleaned=True)
    assert statuses(turn) == ["error"]
    assert told(turn, "release", "instance_id", "claim") == [("i-1", None)]
    assert told(turn, "cleanup", "host", "is_shared") == [("host-1", False)]
    owed = told(moves.deleted(on_its_destination(), NOW, is_cleaned=False), "cleanup", "host")
    assert owed == [("host-1",), ("host-2",)]
