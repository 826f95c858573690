"""When an agent refuses to start, and that it writes nothing then."""

import json
from pathlib import Path
from typing import Any

import pytest
from virtfleet_compute_agent.identity import WrongIdentity, established

from tests.unit.records import a_host

KNOWN = {"host": "node1", "uuid": "uuid-node1", "fleet": "ours"}


def start(folder: Path, host: str = "node1", fleet: str = "ours", **more: Any) -> str:
    return established(folder, host, fleet, more.get("recorded"), has_guests=more.get("has_guests", False))


def test_a_new_host_gets_an_identity_and_keeps_it(tmp_path: Path) -> None:
    first = start(tmp_path)
    assert json.loads((tmp_path / "identity.json").read_text()) == {"host": "node1", "uuid": first, "fleet": "ours"}
    assert start(tmp_path, has_guests=True) == first


def test_a_host_whose_record_was_deleted_comes_back_as_itself(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(json.dumps(KNOWN))
    assert start(tmp_path, has_guests=True) == "uuid-node1"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"host": "node2"}, "is of host node1, and this agent is called node2"),
        ({"fleet": "theirs"}, "is of fleet ours, and this is the database of fleet theirs"),
        ({"recorded": a_host("node1", uuid="another")}, "the record knows host node1 as another"),
    ],
    ids=["renamed", "foreign database", "another machine's name"],
)
def test_an_agent_that_is_not_who_it_was_refuses(tmp_path: Path, told: dict[str, Any], why: str) -> None:
    (tmp_path / "identity.json").write_text(json.dumps(KNOWN))
    with pytest.raises(WrongIdentity, match=why):
        start(tmp_path, **told)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"recorded": a_host("node1")}, "is gone, and the record knows host node1"),
        ({"has_guests": True}, "is gone, and guests of Virtfleet are on this host"),
    ],
    ids=["known by name", "with guests"],
)
def test_an_agent_whose_identity_was_wiped_refuses_and_makes_no_other(
    tmp_path: Path, told: dict[str, Any], why: str
) -> None:
    with pytest.raises(WrongIdentity, match=why):
        start(tmp_path, **told)
    assert not (tmp_path / "identity.json").exists()


def test_an_identity_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(WrongIdentity, match="cannot be read"):
        start(tmp_path)
    assert (tmp_path / "identity.json").read_text() == "{}"
