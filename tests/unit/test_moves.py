"""What a move leaves when one of its steps is given up."""

import pytest
from virtfleet_common import moves
from virtfleet_common.records import Move
from virtfleet_common.states import VmState

from tests.unit.records import NOW, an_instance

MOVE = Move(
    id="m-1", type="resize", source="host-1", source_claim="c-1", old_vm_state=VmState.ACTIVE, destination="host-2",
    claim="c-2",
)  # fmt: skip


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


def test_an_action_that_is_no_move_leaves_nothing_of_one() -> None:
    turn = moves.given_up(an_instance(), "reboot_hard", NOW, is_put_back=False)
    assert (turn.set, turn.effects) == ({}, [])
