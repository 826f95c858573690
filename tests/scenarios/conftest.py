"""What scenarios share."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from virtfleet_common.rabbit import RabbitBus
from virtfleet_local.fleet import DATABASE_NAME

from tests.spoken import Spoken
from tests.world import World


@pytest.fixture
async def host(simulation: World) -> AsyncIterator[Spoken]:
    """A host of its own for one test; nothing is placed there."""
    bus = RabbitBus(simulation.fleet.file.amqp_url, name="spoken-host")
    spoken = Spoken(simulation, bus, f"spoken-{uuid4().hex[:8]}")
    await spoken.register()
    yield spoken
    await bus.close()
    with simulation.fleet.connect() as client:
        client[DATABASE_NAME]["instances"].delete_many({"host": spoken.name})
        client[DATABASE_NAME]["hosts"].delete_one({"_id": spoken.name})
