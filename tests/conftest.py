"""What every test may ask for: a real broker, a real database, and whole fleets, started when first asked for."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from virtfleet_compute_agent.hypervisor import orphans
from virtfleet_local.broker import Broker
from virtfleet_local.database import Database
from virtfleet_local.fleet import LocalFleet
from virtfleet_local.layout import HypervisorKind

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
    "VIRTFLEET_TRANSFER_TIMEOUT": "60",
}
TWICE = {"VIRTFLEET_DUPLICATE_MESSAGES": "1"}
# Deliveries that an agent holds are delivered whatever becomes of the broker: so that there is something to lose.
FEW_AT_A_TIME = {"VIRTFLEET_PREFETCH": "4", "VIRTFLEET_LIBVIRT_TIMEOUT": "6", "VIRTFLEET_LIBVIRT_WORKERS": "2"}
# Time for a guest with an operating system to shut down by itself; and heartbeats so rare that what is known within a
# second is known from libvirt's events.
CIVIL = {
    "VIRTFLEET_HEARTBEAT_INTERVAL": "3",
    "VIRTFLEET_SOFT_REBOOT_TIMEOUT": "15",
    "VIRTFLEET_SOFT_REBOOT_RETRY": "2",
    "VIRTFLEET_SHUTDOWN_TIMEOUT": "8",
    "VIRTFLEET_SHUTDOWN_RETRY": "2",
    "VIRTFLEET_MAX_ATTEMPTS": "2",
    "VIRTFLEET_POLICY_PAUSE": "120",
}
FLEETS = (
    "harbour",
    "two_hosts",
    "simulated_fleet",
    "qemu_fleet",
    "echoing_fleet",
    "qemu_pair",
    "islands",
    "echoing_simulation",
    "four_hosts",
)
"""Those whose tests take longest first."""


def pytest_configure() -> None:
    """Guests outlive the agents that the tests kill: they are the run's to bury."""
    orphans.adopt()


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run side by side (`--dist loadgroup`), tests of one fleet stay together; so do those of one file. Fleets come
    first, then what starts processes of its own, then the rest: so the workers end together."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[int, bool]:
    group = _group(item)
    return FLEETS.index(group) if group in FLEETS else len(FLEETS), "e2e" not in item.path.parts


def _group(item: pytest.Item) -> str:
    params = getattr(item, "callspec", None)
    asked = [*(params.params.values() if params else ()), *getattr(item, "fixturenames", ())]
    return next((fleet for fleet in asked if fleet in FLEETS), item.path.stem)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A running MongoDB, which a test may kill and restart."""
    with Database(tmp_path_factory.mktemp("mongodb")) as running:
        yield running


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running RabbitMQ, which a test may kill, restart and wipe."""
    with Broker(tmp_path_factory.mktemp("rabbitmq")) as running:
        yield running


@pytest.fixture(scope="session")
def mongodb_url(database: Database) -> str:
    """The address of the run's database."""
    return database.url


@pytest.fixture(scope="session")
def amqp_url(broker: Broker) -> str:
    """The services' address of the run's broker."""
    return broker.url


# Fleets of real processes that tests may hurt, quick to notice that something stands still.


@contextmanager
def brittle(
    folder: Path, hosts: int, hypervisor: HypervisorKind, *, shared_storage: bool = False, **more: str
) -> Iterator[LocalFleet]:
    """A fleet whose failpoints lie in its `failpoints` folder."""
    failpoints = folder / "failpoints"
    failpoints.mkdir()
    env = {"*": {**IMPATIENT, **more, "VIRTFLEET_FAILPOINTS": str(failpoints)}}
    with LocalFleet(folder, hosts=hosts, hypervisor=hypervisor, env=env, shared_storage=shared_storage) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def qemu_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """One QEMU host; nothing is sent twice."""
    with brittle(tmp_path_factory.mktemp("fleet"), 1, "qemu") as fleet:
        yield fleet


@pytest.fixture(scope="session")
def echoing_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """One QEMU host, and every command message goes out twice."""
    with brittle(tmp_path_factory.mktemp("echo"), 1, "qemu", **TWICE) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def qemu_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two QEMU hosts whose guests are given the time to shut down."""
    with brittle(tmp_path_factory.mktemp("pair"), 2, "qemu", **CIVIL) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def simulated_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two hosts on libvirt's test driver."""
    with brittle(tmp_path_factory.mktemp("simulated"), 2, "test", **FEW_AT_A_TIME) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def echoing_simulation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two hosts on libvirt's test driver, and every command message goes out twice."""
    with brittle(tmp_path_factory.mktemp("simulated-echo"), 2, "test", **FEW_AT_A_TIME, **TWICE) as fleet:
        yield fleet


@pytest.fixture(params=["qemu_fleet", "echoing_fleet"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The one-host fleet as a program sees it: messages once, and messages twice."""
    async with World(request.getfixturevalue(request.param)) as found:
        yield found


@pytest.fixture(params=["simulated_fleet", "echoing_simulation"])
async def crowd(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The simulated fleet as a program sees it: messages once, and messages twice."""
    async with World(request.getfixturevalue(request.param)) as found:
        yield found


@pytest.fixture
async def simulation(simulated_fleet: LocalFleet) -> AsyncIterator[World]:
    """The simulated fleet as a program sees it."""
    async with World(simulated_fleet) as found:
        yield found


@pytest.fixture
async def pair(qemu_pair: LocalFleet) -> AsyncIterator[World]:
    """The two QEMU hosts as a program sees them."""
    async with World(qemu_pair) as found:
        yield found
