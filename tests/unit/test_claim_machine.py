"""Claims in any order: whatever is claimed, released and registered, a host's books are right after every step."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from virtfleet_common.records import Allocation, Host, Resources
from virtfleet_common.states import HostState
from virtfleet_common.store.memory import MemoryStore

T = TypeVar("T")
HOSTS = st.sampled_from(["node1", "node2"])
INSTANCES = st.sampled_from(["i1", "i2", "i3"])
NUMBERS = st.integers(1, 3)
SIZES = st.integers(0, 4)
LIMIT = Resources(vcpus=8, ram_mb=8, disk_gb=8)


class ClaimMachine(RuleBasedStateMachine):
    """Two hosts, three instances, up to three claims each. `held` is what must be on the hosts' books."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts = MemoryStore().hosts
        self.held: dict[tuple[str, str], Allocation] = {}
        for host in ("node1", "node2"):
            self.run(self.hosts.register(host, uuid=host, limits=LIMIT, facts={"boot_id": "boot1"}))

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)

    def read(self, host: str) -> Host:
        found = self.run(self.hosts.get(host))
        assert found is not None
        return found

    @rule(host=HOSTS, instance=INSTANCES, number=NUMBERS, vcpus=SIZES, ram_mb=SIZES, disk_gb=SIZES)
    def claim(self, host: str, instance: str, number: int, vcpus: int, ram_mb: int, disk_gb: int) -> None:
        wanted = Allocation(
            claim=f"{instance}:{number}", instance_id=instance, vcpus=vcpus, ram_mb=ram_mb, disk_gb=disk_gb
        )
        before = self.read(host)
        has_it = (host, wanted.claim) in self.held
        fits = vcpus <= before.free.vcpus and ram_mb <= before.free.ram_mb and disk_gb <= before.free.disk_gb
        taken = self.run(self.hosts.claim(host, wanted))
        assert taken is (has_it or (fits and before.state is HostState.UP))
        if taken and not has_it:
            self.held[host, wanted.claim] = wanted

    @rule(instance=INSTANCES, number=NUMBERS)
    def release_one(self, instance: str, number: int) -> None:
        claim = f"{instance}:{number}"
        mine = [key for key in self.held if key[1] == claim]
        assert self.run(self.hosts.release(instance, claim)) == len(mine)
        for key in mine:
            del self.held[key]

    @rule(instance=INSTANCES)
    def release_all(self, instance: str) -> None:
        mine = [key for key, one in self.held.items() if one.instance_id == instance]
        assert self.run(self.hosts.release(instance)) == len(mine)
        for key in mine:
            del self.held[key]

    @rule(host=HOSTS, boot=st.sampled_from(["boot1", "boot2"]))
    def register_again(self, host: str, boot: str) -> None:
        self.run(self.hosts.register(host, uuid=host, limits=LIMIT, facts={"boot_id": boot}))

    @rule(host=HOSTS, state=st.sampled_from(list(HostState)))
    def change_state(self, host: str, state: HostState) -> None:
        assert self.run(self.hosts.set_fields(host, {"state": state}))

    @invariant()
    def what_is_free_is_the_limit_less_the_allocations_and_never_negative(self) -> None:
        for name in ("node1", "node2"):
            host = self.read(name)
            assert {one.claim: one for one in host.allocations} == {
                claim: one for (on, claim), one in self.held.items() if on == name
            }
            for kind in ("vcpus", "ram_mb", "disk_gb"):
                free = getattr(host.limits, kind) - sum(getattr(one, kind) for one in host.allocations)
                assert getattr(host.free, kind) == free >= 0


TestClaims = ClaimMachine.TestCase
TestClaims.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
