"""Which networks of an instance a host lacks: asked of a real libvirt connection."""

from collections.abc import Iterator

import libvirt
import pytest
from virtfleet_common.records import NetworkPort
from virtfleet_compute_agent.hypervisor.networks import missing

from tests.unit.records import an_instance


@pytest.fixture
def live() -> Iterator[libvirt.virConnect]:
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def test_only_what_is_surely_not_here_is_missing(live: libvirt.virConnect) -> None:
    ports = [
        NetworkPort(mac="52:54:00:00:00:01", network="default"),
        NetworkPort(mac="52:54:00:00:00:02", network="nowhere"),
        NetworkPort(mac="52:54:00:00:00:03", bridge="lo"),
        NetworkPort(mac="52:54:00:00:00:04", bridge="br-nowhere"),
    ]
    assert missing(live, an_instance(networks=ports)) == ["br-nowhere", "nowhere"]
    assert missing(live, an_instance()) == []
