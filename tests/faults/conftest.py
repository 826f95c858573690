"""A fleet of real processes that tests may hurt, quick to notice that something stands still."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from virtfleet_local.fleet import LocalFleet

from tests.world import World

IMPATIENT = {
    "VIRTFLEET_HEARTBEAT_INTERVAL": "1",
    "VIRTFLEET_STEP_ALLOWANCE": "3",
    "VIRTFLEET_RENEW_INTERVAL": "0.5",
    "VIRTFLEET_RESEND_INTERVAL": "0.3",
    "VIRTFLEET_UNSENT_GRACE": "0.5",
    "VIRTFLEET_HOST_UNKNOWN_AFTER": "60",
    "VIRTFLEET_HOST_DOWN_AFTER": "120",
    "VIRTFLEET_SOFT_REBOOT_TIMEOUT": "1.5",
    "VIRTFLEET_SOFT_REBOOT_RETRY": "0.5",
    "VIRTFLEET_SHUTDOWN_TIMEOUT": "1",
    "VIRTFLEET_SHUTDOWN_RETRY": "0.5",
}


@pytest.fixture(scope="session")
def failpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where a test lays down what should fail."""
    return tmp_path_factory.mktemp("failpoints")


@pytest.fixture(scope="session")
def qemu_fleet(tmp_path_factory: pytest.TempPathFactory, failpoints: Path) -> Iterator[LocalFleet]:
    """One QEMU host; nothing is sent twice."""
    env = {"*": {**IMPATIENT, "VIRTFLEET_FAILPOINTS": str(failpoints)}}
    with LocalFleet(tmp_path_factory.mktemp("fleet"), hosts=1, hypervisor="qemu", env=env) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def echoing_fleet(tmp_path_factory: pytest.TempPathFactory, failpoints: Path) -> Iterator[LocalFleet]:
    """One QEMU host, and every command message goes out twice."""
    env = {"*": {**IMPATIENT, "VIRTFLEET_FAILPOINTS": str(failpoints), "VIRTFLEET_DUPLICATE_MESSAGES": "1"}}
    with LocalFleet(tmp_path_factory.mktemp("echo"), hosts=1, hypervisor="qemu", env=env) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def simulated_fleet(tmp_path_factory: pytest.TempPathFactory, failpoints: Path) -> Iterator[LocalFleet]:
    """Two hosts on libvirt's test driver."""
    env = {"*": {**IMPATIENT, "VIRTFLEET_FAILPOINTS": str(failpoints)}}
    with LocalFleet(tmp_path_factory.mktemp("simulated"), hosts=2, hypervisor="test", env=env) as fleet:
        yield fleet


@pytest.fixture(params=["qemu_fleet", "echoing_fleet"])
async def world(request: pytest.FixtureRequest, failpoints: Path) -> AsyncIterator[World]:
    """The one-host fleet as a program sees it: messages once, and messages twice."""
    async with World(request.getfixturevalue(request.param), failpoints) as found:
        yield found


@pytest.fixture
async def simulation(simulated_fleet: LocalFleet, failpoints: Path) -> AsyncIterator[World]:
    """The simulated fleet as a program sees it."""
    async with World(simulated_fleet, failpoints) as found:
        yield found
