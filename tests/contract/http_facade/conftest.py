"""A database of the run's own, and the application on it."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from virtfleet_common.settings import ApiSettings
from virtfleet_common.store import Store

from .api import Api


@pytest.fixture(scope="module")
async def store(mongodb_url: str) -> AsyncIterator[Store]:
    """A database of this run's own."""
    store = Store.connect(ApiSettings(mongodb_url=mongodb_url, database=f"http_{uuid4().hex[:12]}"))
    await store.prepare()
    yield store
    store.close()


@pytest.fixture
async def api(store: Store) -> AsyncIterator[Api]:
    """The application, for one test."""
    api = Api(store)
    await api.set_up()
    async with api.http:
        yield api
