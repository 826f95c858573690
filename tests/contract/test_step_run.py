"""What a step's run does while the database is away: it waits, and then knows whether the step is still its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from structlog.testing import capture_logs
from virtfleet_common.errors import LostOwnership
from virtfleet_common.executor import StepExecutor, StepRun
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import ActionState
from virtfleet_common.relay import Relay
from virtfleet_common.settings import CommonSettings
from virtfleet_common.states import VmState
from virtfleet_common.steps import STEPS, make_step
from virtfleet_common.store import Expect, Store

from tests.hypervisors import an_instance
from tests.proxy import Wire, wire_to
from tests.world import polling

DATABASE = "step_run"


@pytest.fixture
def wire_and_url(mongodb_url: str) -> Iterator[tuple[Wire, str]]:
    """The wire to the run's database, and the address of its near end."""
    with wire_to(mongodb_url) as (wire, url):
        yield wire, url.partition("?")[0] + "?directConnection=true"


@pytest.fixture
async def store(wire_and_url: tuple[Wire, str]) -> AsyncIterator[Store]:
    """The store at the end of the wire, quick to say that it cannot be reached."""
    store = Store.connect(CommonSettings(mongodb_url=wire_and_url[1], database=DATABASE, store_timeout=3.0))
    yield store
    store.close()


async def a_run(store: Store) -> StepRun:
    """A soft reboot, claimed."""
    now = datetime.now(UTC)
    action = ActionState(
        id=f"req-{uuid4()}", name="reboot", trace_id="0" * 32, user_id="u", project_id="p", started_at=now,
        step=make_step("reboot_soft", "node1"), expires_at=now + timedelta(hours=1),
        original_vm_state=VmState.ACTIVE, progressed_at=now, claimed_by="boot",
    )  # fmt: skip
    instance = await store.instances.insert(an_instance(host="node1", action=action))
    executor = StepExecutor(
        name="compute.node1", boot="boot", host="node1", store=store, relay=Relay(store, MemoryBus(), "virtfleet/test"),
        settings=CommonSettings(), handlers={},
    )  # fmt: skip
    return StepRun(executor, instance, action, STEPS["reboot_soft"])


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_proof_waits_for_the_database(wire_and_url: tuple[Wire, str], store: Store, is_lost: bool) -> None:
    wire, run = wire_and_url[0], await a_run(store)
    if is_lost:
        await store.instances.transition(run.instance.id, expect=Expect(), action={"claimed_by": "other"})
    wire.cut()
    with capture_logs() as logs:
        proving = asyncio.create_task(run.prove(max_age=0.0))
        async for _ in polling("the database to be missed"):
            if proving.done() or any(entry["event"] == "store.unavailable" for entry in logs):
                break
    assert not proving.done()
    wire.mend()
    with pytest.raises(LostOwnership) if is_lost else nullcontext():
        await proving
