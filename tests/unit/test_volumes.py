"""What an attachment's turns write, from the record alone."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from virtfleet_common import moves, volumes
from virtfleet_common.events import lifecycle
from virtfleet_common.records import ActionState, Instance, Move
from virtfleet_common.records.volume import Volume
from virtfleet_common.states import VmState
from virtfleet_common.steps import make_step

from tests.unit.records import NOW, an_instance

SECRET = "6f1f3e55-5d5c-4a53-9d3b-7b9f6f6c2a10"
RBD = {"type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "mon1"}], "user": "u", "secret_uuid": SECRET}
FILE = {"type": "file", "path": "/vol/a"}


def a_volume(**fields: Any) -> Volume:
    plain = {"id": "v1", "name": "data", "project_id": "p", "user_id": "u", "size_gb": 1, "source": FILE}
    return Volume(**plain | {"created_at": NOW, "updated_at": NOW} | fields)


def a_device(id_: str = "v1", **fields: Any) -> dict[str, Any]:
    device = volumes.device_of(a_volume(id=id_), f"a-{id_}", "vdb")
    return {**device, "attached_at": NOW.isoformat(), **fields}


def attaching(device: dict[str, Any], **fields: Any) -> Instance:
    """An instance on which an attach of this device is under way."""
    action = ActionState(
        id="req-1", name="attach_volume", trace_id="0" * 32, user_id="u", project_id="p",
        step=make_step("attach_volume", "host-1", args={"device": device}), started_at=NOW, expires_at=NOW,
        original_vm_state=VmState.ACTIVE, progressed_at=NOW, **fields,
    )  # fmt: skip
    return an_instance(action=action, rev=4)


def test_a_device_says_where_the_data_lies_and_what_the_guest_sees() -> None:
    device = volumes.device_of(a_volume(source=RBD, is_readonly=True), "a1", "vdc")
    assert device == {
        "type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "mon1"}], "user": "u",
        "secret_uuid": SECRET,
        "id": "v1", "attachment_id": "a1", "target": "vdc", "is_readonly": True,
    }  # fmt: skip


def test_the_first_name_is_never_given_and_taken_ones_are_left_out() -> None:
    assert volumes.free_names(an_instance())[:2] == ["vdb", "vdc"]
    taken = [a_device("v1", target="vdb"), a_device("v2", target="vdd"), a_device("v3", target="vdc", detached="lost")]
    assert volumes.free_names(an_instance(block_devices=taken))[:2] == ["vdc", "vde"]
    assert volumes.free_names(an_instance(block_devices=[{"path": "/old"}]))[0] == "vdc"


def test_what_is_attached_is_recorded_and_the_collection_follows() -> None:
    at = datetime(2026, 2, 1, tzinfo=UTC)
    lost = a_device(detached="lost")
    fields, (effect,) = volumes.attached(an_instance(rev=6, block_devices=[lost]), a_device(), at)
    assert fields["block_devices"] == [a_device(attached_at=at.isoformat())]
    assert (effect["kind"], effect["volume_id"]) == ("volume_held", "v1")
    said = {"id": "a-v1", "instance_id": "i-1", "host": "host-1", "device": "vdb", "attached_at": at, "rank": 7}
    assert said.items() <= effect["attachment"].items()


def test_a_move_takes_the_volumes_along_and_a_revert_brings_them_back() -> None:
    move = Move(id="m", type="resize", source="host-1", source_claim="c", old_vm_state=VmState.ACTIVE, destination="b")
    instance = an_instance(move=move, block_devices=[a_device(), a_device("v2", detached="lost"), {"path": "/old"}])
    held = [one for one in moves.switched(instance, move, NOW, is_shared=True).effects if one["kind"] == "volume_held"]
    assert [(one["volume_id"], one["attachment"]["host"]) for one in held] == [("v1", "b")]
    (back,) = moves.handed_back(instance, move).effects
    assert back["attachment"]["host"] == "host-1"


@pytest.mark.parametrize("action", [{"claimed_by": None}, {"claimed_by": "boot", "notes": {"taken_out": "no file"}}])
def test_an_attach_that_never_began_or_was_taken_back_leaves_the_volume_free(action: dict[str, Any]) -> None:
    turn = moves.given_up(attaching(a_device(), **action), "attach_volume", NOW, is_put_back=False)
    assert turn.set == {}
    assert [(one["kind"], one["attachment_id"]) for one in turn.effects] == [("volume_released", "a-v1")]


def test_an_attach_of_which_nobody_knows_the_end_keeps_the_volume() -> None:
    turn = moves.given_up(attaching(a_device(), claimed_by="boot"), "attach_volume", NOW, is_put_back=True)
    assert [one["id"] for one in turn.set["block_devices"]] == ["v1"]
    assert [one["kind"] for one in turn.effects] == ["volume_held"]


def test_a_claim_is_held_by_the_guest_or_by_the_attach_under_way() -> None:
    assert volumes.is_held(an_instance(block_devices=[a_device()]), "a-v1")
    assert volumes.is_held(attaching(a_device()), "a-v1")
    assert not volumes.is_held(an_instance(block_devices=[a_device(detached="lost")]), "a-v1")
    assert not volumes.is_held(attaching(a_device("v2")), "a-v1")


def test_events_do_not_tell_where_the_data_lies() -> None:
    told = lifecycle(an_instance(block_devices=[a_device()]), "stop", "start", after={}, request_id=None)["data"]
    (device,) = told["block_devices"]
    assert set(device) == {"id", "attachment_id", "target", "is_readonly", "attached_at"}


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"type": "nfs", "path": "/a"},
        {"type": "file", "path": "relative"},
        {"type": "file", "path": "/a", "formt": "qcow2"},
        {"type": "block", "path": "/dev/a\n"},
        {"type": "rbd", "pool": "vms", "image": "a", "hosts": []},
        {"type": "rbd", "pool": "vms/other", "image": "a", "hosts": [{"name": "m"}]},
        {"type": "iscsi", "iqn": "target", "host": "san"},
        {"type": "iscsi", "iqn": "iqn.2026-01.org.example:a", "host": "san", "port": 0},
        {"type": "iscsi", "iqn": "iqn.2026-01.org.example:a", "host": "san", "user": "u", "secret_uuid": "password"},
        {"type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "m"}], "user": "u"},
    ],
)
def test_a_source_that_is_not_sound_is_refused(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_volume(source=source)
