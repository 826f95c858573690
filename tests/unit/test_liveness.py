"""Which hosts are judged up, unknown and down."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.records import Host, Resources
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_common.store.memory import MemoryStore
from virtfleet_power_sync.liveness import Judgement, Liveness, SeenHosts
from virtfleet_power_sync.liveness import judge as judge_since

from tests.unit.records import NOW, a_host

SETTINGS = PowerSyncSettings(
    heartbeat_interval=5, host_unknown_after=15, host_down_after=30, mass_loss_fraction=0.5
)  # fmt: skip
LONG_AGO = NOW - timedelta(hours=1)


def judge(hosts: Sequence[Host], now: datetime, settings: PowerSyncSettings) -> Judgement:
    """As somebody who has listened for long."""
    return judge_since(hosts, now, LONG_AGO, settings)


def seen(seconds_ago: float) -> dict[str, object]:
    return {"last_seen": NOW - timedelta(seconds=seconds_ago)}


@pytest.mark.parametrize(
    ("silence", "state"), [(0, HostState.UP), (14, HostState.UP), (15, HostState.UNKNOWN), (30, HostState.DOWN)]
)
def test_a_host_is_judged_by_its_silence(silence: float, state: HostState) -> None:
    hosts = [a_host("a", **seen(silence)), a_host("b"), a_host("c")]
    assert judge(hosts, NOW, SETTINGS).states["a"] is state


@pytest.mark.parametrize("others", [["c", "d"], ["c"], []])
def test_when_half_of_the_hosts_or_more_fall_silent_together_none_is_declared_down(others: list[str]) -> None:
    hosts = [a_host("a", **seen(60)), a_host("b", **seen(60)), *(a_host(other) for other in others)]
    judged = judge(hosts, NOW, SETTINGS)
    assert judged.is_suspect
    assert judged.states == {"a": HostState.UNKNOWN, "b": HostState.UNKNOWN, **dict.fromkeys(others, HostState.UP)}


@pytest.mark.parametrize("others", [["b", "c"], ["b"], []])
def test_one_host_that_falls_silent_alone_is_never_too_many(others: list[str]) -> None:
    judged = judge([a_host("a", **seen(60)), *(a_host(other) for other in others)], NOW, SETTINGS)
    assert (judged.states["a"], judged.is_suspect) == (HostState.DOWN, False)


def test_hosts_that_were_lost_before_do_not_count_among_those_that_fall_silent_together() -> None:
    lost = [a_host(name, state=HostState.DOWN, boot_id=None, **seen(600)) for name in "abc"]
    judged = judge([*lost, a_host("d", **seen(60)), a_host("e"), a_host("f")], NOW, SETTINGS)
    assert (judged.states["a"], judged.states["d"]) == (HostState.DOWN, HostState.DOWN)


def test_a_host_that_an_admin_forced_down_is_down_although_it_beats() -> None:
    assert judge([a_host("a", is_forced_down=True)], NOW, SETTINGS).states["a"] is HostState.DOWN


def test_a_host_whose_registration_is_void_is_down_although_it_was_just_seen() -> None:
    assert judge([a_host("a", boot_id=None)], NOW, SETTINGS).states["a"] is HostState.DOWN


def test_a_host_that_is_heard_again_before_it_is_declared_down_is_up() -> None:
    assert judge([a_host("a", state=HostState.UNKNOWN)], NOW, SETTINGS).states["a"] is HostState.UP


@pytest.mark.parametrize(("listened", "state"), [(0, HostState.UNKNOWN), (29, HostState.UNKNOWN), (30, HostState.DOWN)])
@pytest.mark.parametrize("never_seen", [False, True])
def test_a_host_is_not_down_before_it_could_be_heard_for_as_long(
    listened: float, state: HostState, never_seen: bool
) -> None:
    silent = a_host("a", **({"last_seen": None} if never_seen else seen(60)))
    judged = judge_since([silent, a_host("b"), a_host("c")], NOW, NOW - timedelta(seconds=listened), SETTINGS)
    assert judged.states["a"] is state


# One that listens: what it missed itself is nobody's silence


class Keeper:
    """power_sync's look at its hosts, second by second. `heard` are the hosts whose heartbeats arrive."""

    def __init__(self, *hosts: str) -> None:
        self.store, self.bus, self.at = MemoryStore(), MemoryBus(), NOW
        self.heard = set(hosts)
        self.begin()

    def now(self) -> datetime:
        return self.at

    def begin(self) -> None:
        """It starts."""
        self.liveness = Liveness(self.store, self.bus, self, SeenHosts(self.store), SETTINGS)

    async def known(self) -> None:
        """The hosts are up, and were heard a moment ago."""
        for host in self.heard:
            await self.store.hosts.register(host, uuid=host, limits=Resources(), facts={"boot_id": "boot"})
        await self.passes(60)

    async def passes(self, seconds: int, *, looks: bool = True) -> None:
        """Time passes; every second it `looks` at its hosts."""
        for _ in range(seconds):
            self.at += timedelta(seconds=1)
            if looks:
                for host in self.heard:
                    await self.store.hosts.set_fields(host, {"last_seen": self.at})
                await self.liveness.check()

    async def states(self) -> dict[str, HostState]:
        return {host.id: host.state for host in await self.store.hosts.find()}


UP, UNKNOWN, DOWN = HostState.UP, HostState.UNKNOWN, HostState.DOWN
MANY = tuple("abcdefghij")


@pytest.mark.parametrize(("hosts", "back"), [("abc", "ab"), (MANY, MANY[:6])], ids=["3", "10"])
async def test_who_comes_back_last_after_a_common_silence_is_not_lost(
    hosts: Sequence[str], back: Sequence[str]
) -> None:
    keeper = Keeper(*hosts)
    await keeper.known()
    keeper.heard = set()
    await keeper.passes(60)
    keeper.heard = set(back)
    await keeper.passes(29)
    assert await keeper.states() == {host: UP if host in back else UNKNOWN for host in hosts}
    keeper.heard = set(hosts)
    await keeper.passes(1)
    assert set((await keeper.states()).values()) == {UP}


async def test_who_does_not_come_back_after_a_common_silence_is_lost_in_the_end() -> None:
    keeper = Keeper("a", "b", "c")
    await keeper.known()
    keeper.heard = set()
    await keeper.passes(60)
    keeper.heard = {"a", "b"}
    await keeper.passes(31)
    assert await keeper.states() == {"a": UP, "b": UP, "c": DOWN}


@pytest.mark.parametrize("others", [(), ("b", "c")])
async def test_in_a_fleet_that_is_otherwise_well_a_host_is_lost_when_its_own_time_is_over(
    others: Sequence[str],
) -> None:
    keeper = Keeper("a", *others)
    await keeper.known()
    keeper.heard = set(others)
    await keeper.passes(29)
    assert (await keeper.states())["a"] is UNKNOWN
    await keeper.passes(1)
    assert (await keeper.states())["a"] is DOWN


@pytest.mark.parametrize("gap", ["start", "standstill", "broker"])
async def test_the_only_host_is_not_lost_because_nobody_listened(gap: str) -> None:
    keeper = Keeper("a")
    await keeper.known()
    keeper.heard, keeper.bus.is_available = set(), gap != "broker"
    await keeper.passes(60, looks=gap == "broker")
    keeper.bus.is_available = True
    if gap == "start":
        keeper.begin()
    await keeper.passes(29)
    assert await keeper.states() == {"a": UNKNOWN}
    await keeper.passes(2)
    assert await keeper.states() == {"a": DOWN}


async def test_a_clock_that_was_set_back_delays_a_loss_and_does_not_forbid_it() -> None:
    keeper = Keeper("a", "b", "c")
    await keeper.known()
    keeper.at -= timedelta(hours=1)
    await keeper.passes(5)
    keeper.heard = {"a", "b"}
    await keeper.passes(31)
    assert await keeper.states() == {"a": UP, "b": UP, "c": DOWN}
