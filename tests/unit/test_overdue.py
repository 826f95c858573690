"""What power_sync does about work that stands still, and about decisions that nobody makes."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import Instance, Move, Resources
from virtfleet_common.relay import Relay
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState, VmState
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
