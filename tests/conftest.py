"""What every test may ask for: a real broker and a real database, private to the run, started when first asked for."""

from collections.abc import Iterator

import pytest
from virtfleet_local.broker import Broker
from virtfleet_local.database import Database


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
