"""What power_sync does about work that stands still, and about decisions that nobody makes."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import ActionState, Instance, Move, Resources
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState, TaskState, VmState
from virtfleet_common.steps import make_step
from virtfleet_common.store.memory import MemoryStore
from virtfleet_power_sync.overdue import Overdue

from tests.unit.records import NOW, an_instance


class Sweep:
    """Instances of host-1, and what sweeps over them."""

    def __init__(self, **settings: Any) -> None:
        self.store, self.at = MemoryStore(), NOW
        relay = Relay(self.store, MemoryBus(), "virtfleet/test")
        self.overdue = Overdue(self.store, relay, self, PowerSyncSettings(**settings))

    def now(self) -> datetime:
        return self.at

    async def host(self, state: HostState) -> None:
        await self.store.hosts.register("host-1", uuid="u", limits=Resources(), facts={"boot_id": "boot"})
        await self.store.hosts.set_fields("host-1", {"state": state})

    async def guest(self) -> Instance:
        found = await self.store.instances.get("i-1")
        assert found is not None
        return found


# Actions past their time

LATE = {"action_timeout": 900, "step_allowance": 15, "resend_interval": 1, "renew_interval": 5}


async def at_work(sweep: Sweep, *, expires_in: float, progressed_ago: float) -> None:
    """A claimed step that stands still; in seconds."""
    expires_at, progressed_at = sweep.at + timedelta(seconds=expires_in), sweep.at - timedelta(seconds=progressed_ago)
    action = ActionState(
        id="req-1", name="reboot", trace_id="0" * 32, user_id="u", project_id="p", claimed_by="boot",
        step=make_step("reboot_hard", "host-1"), started_at=progressed_at, expires_at=expires_at,
        original_vm_state=VmState.ACTIVE, progressed_at=progressed_at, sent_at=progressed_at,
    )  # fmt: skip
    await sweep.store.instances.insert(an_instance(task_state=TaskState.REBOOTING_HARD, action=action))


async def looks(sweep: Sweep, seconds: int) -> None:
    for _ in range(seconds):
        sweep.at += timedelta(seconds=1)
        await sweep.overdue.send_again()


async def fault(sweep: Sweep) -> str | None:
    """Why the action has ended; None: it goes on."""
    guest = await sweep.guest()
    assert (guest.action is None) is (guest.fault is not None)
    return guest.fault.code if guest.fault else None


@pytest.mark.parametrize(("expires_in", "ends_in"), [(-3600, 880), (870, 880), (1200, 1200)])
async def test_an_action_ends_when_its_time_is_over_and_nothing_was_heard_of_it_for_as_long(
    expires_in: float, ends_in: int
) -> None:
    sweep = Sweep(**LATE)
    await at_work(sweep, expires_in=expires_in, progressed_ago=20)
    await looks(sweep, ends_in)
    assert await fault(sweep) is None
    await looks(sweep, 1)
    assert await fault(sweep) == "timed_out"


@pytest.mark.parametrize("gap", ["start", "standstill"])
async def test_after_a_gap_of_ours_who_is_at_work_can_say_so_first(gap: str) -> None:
    sweep = Sweep(**LATE)
    if gap == "standstill":
        await looks(sweep, 60)
        sweep.at += timedelta(hours=1)
    await at_work(sweep, expires_in=-3600, progressed_ago=3600)
    await looks(sweep, 15)
    assert await fault(sweep) is None
    await looks(sweep, 2)
    assert await fault(sweep) == "timed_out"


# Moves that nobody confirms


@pytest.mark.parametrize("state", [HostState.UNKNOWN, HostState.DOWN])
async def test_a_move_is_not_confirmed_before_its_destination_is_there(state: HostState) -> None:
    sweep = Sweep()
    await sweep.host(state)
    move = Move(
        id="m", type="resize", source="host-2", source_claim="c", old_vm_state=VmState.ACTIVE, destination="host-1",
        confirm_by=NOW - timedelta(days=1),
    )  # fmt: skip
    await sweep.store.instances.insert(an_instance(VmState.RESIZED, move=move))
    await sweep.overdue.confirm_due()
    assert (await sweep.guest()).move == move
    await sweep.host(HostState.UP)
    await sweep.overdue.confirm_due()
    assert ((await sweep.guest()).move, (await sweep.guest()).vm_state) == (None, VmState.ACTIVE)
