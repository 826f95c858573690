"""How lost hosts are proven to be off: the plug-ins, with real programs, and that it is done once and for this loss."""

import asyncio
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from virtfleet_common.bus import EVENTS, Delivery, QueueSpec
from virtfleet_common.errors import FenceFault
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.plugins import NoSuchPlugin, make
from virtfleet_common.records import Fencing, Host, Resources
from virtfleet_common.settings import PowerSyncSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Store
from virtfleet_common.store.hosts import as_lost
from virtfleet_common.store.memory import MemoryStore
from virtfleet_power_sync.fencing.command import Command, NoFenceCommand, Said
from virtfleet_power_sync.fencing.fencer import Fencer, is_due
from virtfleet_power_sync.fencing.manual import Attestation
from virtfleet_power_sync.fencing.none import Silence

from tests.unit.records import NOW, a_host

LATER = NOW + timedelta(seconds=60)


class Stuck(Silence):
    """Never comes to an end by itself."""

    def __init__(self) -> None:
        self.is_begun = asyncio.Event()

    async def prove(self, host: Host) -> str:
        self.is_begun.set()
        await asyncio.Event().wait()
        return ""


class Watch:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> datetime:
        return self.at


class Fleet:
    """Hosts in a store, what is told of them, and replicas of what fences them."""

    def __init__(self) -> None:
        self.store: Store = MemoryStore()
        self.bus = MemoryBus()
        self.watch = Watch()
        self.told: list[str] = []

    async def lose(self, *names: str, **fields: Any) -> None:
        for name in names:
            await self.store.hosts.register(name, uuid=f"uuid-{name}", limits=Resources(), facts={"boot_id": "b"})
            await self.store.hosts.set_fields(name, {**as_lost(self.watch.now()), **fields})

    async def host(self, name: str = "a") -> Host:
        found = await self.store.hosts.get(name)
        assert found is not None
        return found

    def fencer(self, fence: Any, boot: str = "one", **more: Any) -> Fencer:
        return Fencer(fence, self.store, self.bus, self.watch, PowerSyncSettings(**more), boot)

    async def round(self, fencer: Fencer) -> None:
        """One round, what it began, and what the next round tells of it."""
        await fencer.check(await self.store.hosts.find())
        await fencer.settle()
        await fencer.check(await self.store.hosts.find())

    async def listen(self, delivery: Delivery) -> None:
        self.told.append(delivery.key)
        await delivery.settler.ack()


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def programmed(tmp_path: Path, script: str, **more: Any) -> PowerSyncSettings:
    """Settings whose fence is a shell script, which may keep what it likes in the folder it runs in."""
    program = tmp_path / "fence"
    program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
    program.chmod(0o755)
    quick: dict[str, Any] = {"fence_status_interval": 0.01, "fence_off_timeout": 0.1, "fence_call_timeout": 5}
    return PowerSyncSettings(fence_command=[str(program), "{action}", "--plug={host}"], **{**quick, **more})


# Plug-ins


def test_the_plugin_that_the_settings_name_is_found() -> None:
    assert isinstance(make("virtfleet.fences", "none", PowerSyncSettings()), Silence)
    with pytest.raises(NoSuchPlugin, match=r"no fence called 'moat'; installed: command, manual, none"):
        make("virtfleet.fences", "moat", PowerSyncSettings())
    with pytest.raises(NoFenceCommand):
        make("virtfleet.fences", "command", PowerSyncSettings())


async def test_an_admins_force_down_is_the_attestation_that_a_manual_fence_waits_for() -> None:
    fence = Attestation(PowerSyncSettings())
    with pytest.raises(FenceFault, match="waits for an admin"):
        await fence.prove(a_host(state=HostState.DOWN))
    assert await fence.prove(a_host(is_forced_down=True)) == "an admin forced it down"


async def test_a_program_is_told_whom_to_switch_off_and_gets_no_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTFLEET_MONGODB_URL", "mongodb://user:secret@db/")
    settings = programmed(tmp_path, 'echo "$@" >> called; env > env; echo "Status: OFF"; exit 2')
    assert await Command(settings).prove(a_host("rack-1", host_ip="10.0.0.7")) == "its status is: Status: OFF"
    assert (tmp_path / "called").read_text() == "off --plug=rack-1\nstatus --plug=rack-1\n"
    environment = (tmp_path / "env").read_text()
    assert "FENCE_HOST=rack-1\n" in environment
    assert "FENCE_HOST_IP=10.0.0.7\n" in environment
    assert "secret" not in environment


async def test_a_program_is_asked_until_the_host_is_seen_off(tmp_path: Path) -> None:
    script = (
        '[ $1 = off ] && exit; echo x >> asked; [ $(wc -l < asked) -ge 3 ] && echo off || echo "Chassis Power is on"'
    )
    await Command(programmed(tmp_path, script, fence_off_timeout=60)).prove(a_host())
    assert (tmp_path / "asked").read_text() == "x\n" * 3


async def test_a_program_that_says_it_succeeded_is_not_believed(tmp_path: Path) -> None:
    settings = programmed(tmp_path, '[ $1 = off ] && echo "Success: Powered OFF" || echo "Status: ON"; exit 0')
    with pytest.raises(FenceFault, match="not seen off") as caught:
        await Command(settings).prove(a_host())
    assert caught.value.facts["output"] == "off ended with 0\nSuccess: Powered OFF\nstatus ended with 0\nStatus: ON"


async def test_a_host_that_is_seen_off_is_off_although_switching_it_off_failed(tmp_path: Path) -> None:
    await Command(programmed(tmp_path, "[ $1 = off ] && exit 1; echo off")).prove(a_host())


async def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    settings = programmed(tmp_path, "sleep 1000 & echo $! >> pids; wait", fence_call_timeout=1)
    with pytest.raises(FenceFault, match="not seen off") as caught:
        await Command(settings).prove(a_host())
    assert caught.value.facts["output"] == "off took too long\nstatus took too long"
    sleepers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert sleepers
    psutil.wait_procs([psutil.Process(pid) for pid in sleepers if psutil.pid_exists(pid)], timeout=5)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in sleepers)


async def test_a_program_that_cannot_be_run_is_no_proof() -> None:
    with pytest.raises(FenceFault, match="/no/such/program cannot be run"):
        await Command(PowerSyncSettings(fence_command=["/no/such/program"])).prove(a_host())


@pytest.mark.parametrize(
    ("action", "code", "output", "is_off"),
    [
        ("status", 0, "off\n", True),
        ("status", 0, "Chassis Power is off", True),
        ("status", 2, "debug: asked\nStatus: OFF\n\n", True),
        ("status", 0, "PowerState=Off", True),
        ("status", 1, "off", False),
        ("status", None, "off", False),
        ("status", 0, "failed to switch it off", False),
        ("status", 0, "Status: ON", False),
        ("status", 0, "off\nno: on", False),
        ("status", 0, "", False),
        ("off", 0, "off", False),
    ],
)
def test_a_status_says_that_a_host_is_off_or_says_nothing(
    action: str, code: int | None, output: str, is_off: bool
) -> None:
    assert Said(action, code, output, "").is_off is is_off


# When an attempt is due


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ({}, False),
        ({"state": HostState.UNKNOWN}, False),
        ({"state": HostState.DOWN}, True),
        ({"state": HostState.DOWN, "fence": {"proof": "silence", "at": NOW}}, False),
    ],
)
def test_only_a_host_that_is_lost_and_not_proven_off_is_fenced(host: dict[str, Any], is_it: bool) -> None:
    assert is_due(a_host(**host), NOW) is is_it


@pytest.mark.parametrize(
    ("by", "lost_at", "until", "is_it"),
    [
        ("another", NOW, LATER, False),
        ("another", NOW - timedelta(days=1), LATER, False),
        ("another", NOW, NOW, True),
        (None, NOW, LATER, False),
        (None, NOW, NOW, True),
        (None, NOW - timedelta(days=1), LATER, True),
    ],
    ids=["at it", "at it since an earlier loss", "died at it", "pausing", "paused", "pausing in an earlier loss"],
)
def test_a_host_is_not_fenced_while_somebody_is_at_it_or_has_just_failed(
    by: str | None, lost_at: datetime, until: datetime, is_it: bool
) -> None:
    fencing = Fencing(lost_at=lost_at, attempts=1, by=by, until=until)
    assert is_due(a_host(state=HostState.DOWN, lost_at=NOW, fencing=fencing), NOW) is is_it


# The fencer


async def test_a_lost_host_is_fenced_and_it_is_told_once(fleet: Fleet) -> None:
    await fleet.lose("a")
    async with fleet.bus.consume(QueueSpec("test", [(EVENTS, "host.#")]), fleet.listen):
        one, two = fleet.fencer(Silence(PowerSyncSettings())), fleet.fencer(Silence(PowerSyncSettings()), "two")
        await asyncio.gather(fleet.round(one), fleet.round(two))
    fenced = await fleet.host()
    assert fenced.fence is not None
    assert (fenced.fence.proof, fenced.fence.is_told) == ("silence", True)
    assert fleet.told == ["host.a.fenced"]


async def test_of_two_replicas_one_switches_the_host_off(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.lose("a")
    settings = programmed(tmp_path, "echo $1 >> called; echo off")
    await asyncio.gather(*(fleet.round(fleet.fencer(Command(settings), boot)) for boot in ("one", "two")))
    assert (tmp_path / "called").read_text() == "off\nstatus\n"
    assert (await fleet.host()).fence is not None


async def test_a_round_does_not_wait_for_a_fence_and_a_host_that_is_back_is_let_go(fleet: Fleet) -> None:
    await fleet.lose("a")
    stuck = Stuck()
    fencer = fleet.fencer(stuck)
    await fencer.check(await fleet.store.hosts.find())
    await stuck.is_begun.wait()
    await fleet.store.hosts.register("a", uuid="uuid-a", limits=Resources(), facts={"boot_id": "new"})
    await fleet.round(fencer)
    back = await fleet.host()
    assert (back.state, back.fence) == (HostState.UP, None)
    assert back.fencing is not None
    assert back.fencing.by is None


async def test_a_proof_of_an_earlier_loss_is_not_written_for_a_later_one(fleet: Fleet) -> None:
    class LostAgain(Silence):
        async def prove(self, host: Host) -> str:
            fleet.watch.at = LATER
            await fleet.lose("a")
            return "it was off a while ago"

    await fleet.lose("a")
    fencer = fleet.fencer(LostAgain(PowerSyncSettings()))
    await fencer.check(await fleet.store.hosts.find())
    await fencer.settle()
    lost = await fleet.host()
    assert (lost.fence, lost.lost_at) == (None, LATER)
    assert is_due(lost, LATER)


async def test_a_fence_that_fails_is_tried_again_after_a_pause_and_says_why_once(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.lose("a")
    settings = programmed(tmp_path, '[ $1 = off ] && echo "cannot reach it" >&2; echo on')
    fencer = fleet.fencer(Command(settings), fence_retry=30)
    async with fleet.bus.consume(QueueSpec("test", [(EVENTS, "host.#")]), fleet.listen):
        await fleet.round(fencer)
        failed = await fleet.host()
        assert failed.fencing is not None
        assert failed.fencing.error == "host a was not seen off"
        assert "cannot reach it" in failed.fencing.output
        assert failed.fencing.until == NOW + timedelta(seconds=30)
        fleet.watch.at = NOW + timedelta(seconds=29)
        await fleet.round(fencer)
        assert (await fleet.host()).fencing == failed.fencing
        fleet.watch.at = NOW + timedelta(seconds=30)
        await fleet.round(fencer)
    again = await fleet.host()
    assert again.fencing is not None
    assert again.fencing.attempts == 2
    assert fleet.told == ["host.a.fence_failed"]


async def test_a_plugin_that_breaks_or_hangs_is_a_failed_attempt(fleet: Fleet) -> None:
    class Broken(Silence):
        async def prove(self, host: Host) -> str:
            if host.id == "a":
                raise KeyError("pdu")
            await asyncio.Event().wait()
            return ""

    await fleet.lose("a", "b")
    await fleet.round(fleet.fencer(Broken(PowerSyncSettings()), fence_attempt_timeout=0.5))
    a, b = await fleet.host("a"), await fleet.host("b")
    assert a.fencing is not None
    assert b.fencing is not None
    assert a.fencing.error == "KeyError: 'pdu'"
    assert b.fencing.error == "the attempt to fence host b took too long"


async def test_a_stopped_replica_leaves_its_attempt_to_the_others(fleet: Fleet) -> None:
    await fleet.lose("a")
    stuck = Stuck()
    fencer = fleet.fencer(stuck)
    await fencer.check(await fleet.store.hosts.find())
    await stuck.is_begun.wait()
    assert not is_due(await fleet.host(), fleet.watch.now())
    await fencer.stop()
    assert is_due(await fleet.host(), fleet.watch.now())


async def test_a_program_is_ended_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")
    settings = programmed(tmp_path, "sleep 1000 & echo $! > started; wait", fence_call_timeout=1000)
    proving = asyncio.create_task(Command(settings).prove(a_host()))
    sleeper = psutil.Process(int(await asyncio.to_thread((tmp_path / "started").read_text)))
    proving.cancel()
    await asyncio.wait([proving])
    gone, _ = psutil.wait_procs([sleeper], timeout=5)
    assert gone == [sleeper] or sleeper.status() == "zombie"


async def test_more_hosts_than_the_limit_are_not_switched_off_without_a_person(fleet: Fleet, tmp_path: Path) -> None:
    await fleet.lose("a", "b")
    await fleet.lose("c", is_forced_down=True)
    fencer = fleet.fencer(Command(programmed(tmp_path, "echo off")), auto_loss_limit=1)
    await fleet.round(fencer)
    a, b, c = await fleet.host("a"), await fleet.host("b"), await fleet.host("c")
    assert a.fence is not None
    assert c.fence is not None
    assert (b.fence, b.fencing is not None) == (None, True)
    assert b.fencing is not None
    assert "more than 1 hosts were lost" in b.fencing.error
    await fleet.round(fleet.fencer(Silence(PowerSyncSettings()), auto_loss_limit=1))
    assert (await fleet.host("b")).fence is None  # its pause is not over
    fleet.watch.at = LATER
    await fleet.round(fleet.fencer(Silence(PowerSyncSettings()), auto_loss_limit=1))
    assert (await fleet.host("b")).fence is not None  # silence harms nobody: it is not limited
