"""When a host counts as heard, and how it gives its guests up when it is not."""

import asyncio

import pytest
from virtfleet_common.errors import Faulty
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import Resources
from virtfleet_common.settings import AgentSettings
from virtfleet_common.states import HostState
from virtfleet_common.store.memory import MemoryStore
from virtfleet_compute_agent.standing import HostLost, Standing

HOST, OTHER, BOOT = "host-1", "host-2", "boot-1"


class Isle:
    """A registered host without a broker: only the record can say that it is heard."""

    def __init__(self, isolation_after: float) -> None:
        self.store = MemoryStore()
        self.tries = 0
        self.failures = 0
        self.sequence = 0
        config = AgentSettings(heartbeat_interval=0.02, isolation_after=isolation_after, isolation_policy="stop")
        self.standing = Standing(HOST, BOOT, self.store, MemoryBus(), config, self._power_off)

    async def _power_off(self) -> None:
        self.tries += 1
        if self.tries <= self.failures:
            raise Faulty("a guest could not be switched off")

    async def is_seen(self, host: str = HOST) -> None:
        """power_sync hears a heartbeat."""
        self.sequence += 1
        await self.store.hosts.put_seen({host: {"boot_id": BOOT, "sequence": self.sequence}})

    async def others_are_seen(self) -> None:
        """power_sync hears heartbeats of another host, for ever."""
        while True:
            await self.is_seen(OTHER)


@pytest.fixture
async def isle() -> Isle:
    return await registered(isolation_after=0.2)


async def registered(isolation_after: float) -> Isle:
    made = Isle(isolation_after)
    for host in (HOST, OTHER):
        await made.store.hosts.register(host, uuid=host, limits=Resources(), facts={"boot_id": BOOT})
    return made


async def lost(isle: Isle) -> str:
    """Why the host gives itself up."""
    others = asyncio.create_task(isle.others_are_seen())
    with pytest.raises(ExceptionGroup) as group:
        async with asyncio.timeout(30):
            await isle.standing.watch()
    others.cancel()
    (error,) = group.value.exceptions
    assert isinstance(error, HostLost)
    return error.message


async def test_a_host_that_the_record_still_calls_up_is_isolated_when_nobody_has_heard_it(isle: Isle) -> None:
    assert "isolated" in await lost(isle)
    assert (await isle.store.hosts.get_state(HOST), isle.tries) == (HostState.UP, 1)


@pytest.mark.parametrize("heard", [[HOST], []], ids=["this one is heard", "nobody is heard"])
async def test_a_host_is_not_isolated_when(heard: list[str]) -> None:
    isle = await registered(isolation_after=1)
    watching = asyncio.create_task(isle.standing.watch())
    for _ in range(75):
        for host in heard:
            await isle.is_seen(host)
        done, _ = await asyncio.wait({watching}, timeout=0.02)
        assert not done
    watching.cancel()
    await asyncio.wait({watching})
    assert isle.tries == 0


async def test_guests_that_could_not_be_switched_off_are_tried_again(isle: Isle) -> None:
    isle.failures = 3
    assert "isolated" in await lost(isle)
    assert isle.tries == 4
