"""The second act: a host loses its power with two guests on it, and returns; a guest powers itself off.

They are played on hosts with shared storage, whose fleet notices a loss within seconds and evacuates by itself.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial

import psutil
from virtfleet_common.client import FleetEvent

from virtfleet_local.demo import console_text, host_side
from virtfleet_local.demo.sights import Sight
from virtfleet_local.demo.stage import Guest, Stage, demand
from virtfleet_local.processes import has_ended

VIGILANT = {
    "VIRTFLEET_AUTO_EVACUATE": "all",
    "VIRTFLEET_HEARTBEAT_INTERVAL": "1",
    "VIRTFLEET_LIVENESS_INTERVAL": "0.5",
    "VIRTFLEET_HOST_UNKNOWN_AFTER": "3",
    "VIRTFLEET_HOST_DOWN_AFTER": "6",
    "VIRTFLEET_EVACUATION_RETRY": "5",
    "VIRTFLEET_CLEANUP_INTERVAL": "1",
}
TWINS = ("castor", "pollux")
TIRED = "tired"
_SOON = 1.0
_LOOK_CLOSELY = 0.02


async def create_twins(stage: Stage) -> None:
    """Two guests that stay together."""
    group = await stage.make_group("affinity")
    guests = [await stage.create(name, "tiny", hints={"group": group}) for name in TWINS]
    for guest in guests:
        await stage.ready(guest, 1)
    stage.screen.saw(Sight.TOGETHER, _common_host(guests))


async def lose_host(stage: Stage) -> None:
    """Its power is cut. Everything after that happens by itself."""
    guests = _twins(stage)
    lost = _common_host(guests)
    first_boots = [console_text.boots(await stage.console(guest)) for guest in guests]
    stage.screen.says(f"cutting the power of {lost}")
    died = await asyncio.to_thread(stage.fleet.kill_host, lost)
    began = time.monotonic()
    demand(died == len(guests), f"{died} guests died with {lost}")
    stage.screen.saw(Sight.POWER_CUT, f"{died} guests died with {lost}")
    fenced = await _noticed(stage, lost)
    for guest in guests:
        await _evacuated(stage, guest, fenced)
    stage.screen.saw(Sight.FENCED, f"{fenced.data['proof']}: {fenced.data['detail']}")
    stage.screen.saw(Sight.EVACUATED, _common_host(guests))
    for guest, boots in zip(guests, first_boots, strict=True):
        await _booted_once_more(stage, guest, boots)
    stage.screen.saw(Sight.DATA_SAVED, f"{time.monotonic() - began:.1f} s after the power cut")
    await _migrations_are(stage, "done")
    stage.screen.saw(Sight.MIGRATIONS_DONE)


async def _noticed(stage: Stage, host: str) -> FleetEvent:
    """Returns the event that says that the host is fenced."""
    for state in ("unknown", "down"):
        await stage.tale.heard(f"host.{host}.{state}")
    shown = await _states(stage)
    demand(shown[host] == "down", f"the API shows {shown}")
    stage.screen.saw(Sight.LOST, _told(shown))
    return await stage.tale.heard(f"host.{host}.fenced")


async def _evacuated(stage: Stage, guest: Guest, fenced: FleetEvent) -> None:
    """The guest runs elsewhere, and only there; it was started after the lost host was fenced."""
    end = await stage.tale.heard(f"instance.evacuate.end.{guest.id}")
    demand(stage.tale.told.index(fenced) < stage.tale.told.index(end), f"{guest.name} was started before the fence")
    demand(end.data["host"] != guest.host, f"{guest.name} is still on {guest.host}")
    demand(end.data["after"]["vm_state"] == "active", f"{guest.name} is {end.data['after']}")
    guest.host = end.data["host"]
    demand(
        host_side.running(stage.data, guest.id, guest.host) == [stage.running(guest)], f"{guest.name} runs elsewhere"
    )


async def _booted_once_more(stage: Stage, guest: Guest, boots: list[str]) -> None:
    """The console, which lies by the disk, shows one boot more, and that boot has found the first one's mark."""
    console = await stage.ready(guest, len(boots) + 1)
    demand(console_text.boots(console)[:-1] == boots, f"{guest.name} has booted more than once: {console}")
    demand(console_text.latest_mark(console) == boots[0], f"the disk of {guest.name} has lost its mark: {console}")


async def return_host(stage: Stage) -> None:
    """The host that was lost has its power back."""
    guests = _twins(stage)
    (back,) = [host for host, state in (await _states(stage)).items() if state != "up"]
    stale = [guest.name for guest in guests if host_side.defined_by(stage.data, back, guest.id)]
    demand(len(stale) == len(guests), f"{back} still defines {stale} alone")
    running, told = [stage.running(guest) for guest in guests], len(stage.tale.told)
    stage.screen.says(f"giving {back} its power back; its libvirt still defines {' and '.join(stale)}")
    await asyncio.to_thread(stage.fleet.start_host, back)
    await stage.tale.heard(f"host.{back}.up", since=told)
    shown = await _states(stage)
    demand(shown[back] == "up", f"the API shows {shown}")
    stage.screen.saw(Sight.RETURNED, _told(shown))
    await _migrations_are(stage, "completed")
    left = host_side.files_of(stage.data, [guest.id for guest in guests], back)
    demand(not left, f"{back} still has {left}")
    stage.screen.saw(Sight.STALE_GONE)
    demand([stage.running(guest) for guest in guests] == running, "a guest was disturbed")
    stage.screen.saw(Sight.COMPLETED)


async def switch_off(stage: Stage) -> None:
    """A guest that is done powers itself off; nobody asked it to."""
    guest = await stage.create(TIRED, "tiny-tired")
    process = psutil.Process(stage.running(guest).pid)
    told, died = await asyncio.gather(
        _when(stage.tale.heard(f"instance.power.stopped.{guest.id}")),
        _when(stage.until(f"the end of {guest.name}", partial(_ended, process), bool, every=_LOOK_CLOSELY)),
    )
    console = await stage.console(guest)
    is_own_doing = console_text.has_switched_off(console) and not console_text.presses(console)
    demand(is_own_doing, f"the console shows something else: {console}")
    stage.screen.saw(Sight.OFF_BY_ITSELF)
    status = (await stage.get(f"/servers/{guest.id}"))["server"]["status"]
    demand(status == "SHUTOFF" and told - died < _SOON, f"{status}, {told - died:.2f} s after its process had ended")
    stage.screen.saw(Sight.NOTICED, f"{status}, {max(told - died, 0):.2f} s after its process had ended")


def _twins(stage: Stage) -> list[Guest]:
    return [stage.guests[name] for name in TWINS]


def _common_host(guests: Sequence[Guest]) -> str:
    hosts = {guest.host for guest in guests}
    demand(len(hosts) == 1, f"an affinity group is on {hosts}")
    return hosts.pop()


async def _states(stage: Stage) -> dict[str, str]:
    services = (await stage.get("/os-services?binary=nova-compute"))["services"]
    return {service["host"]: service["state"] for service in services}


def _told(states: Mapping[str, str]) -> str:
    return ", ".join(f"{host} {state}" for host, state in states.items())


async def _migrations_are(stage: Stage, status: str) -> None:
    """Of every guest, the one that there is."""
    for guest in _twins(stage):
        look, wanted = partial(_migrations, stage, guest), [f"evacuation {status}"]
        await stage.until(f"the migration of {guest.name} to be {status}", look, wanted.__eq__)


async def _migrations(stage: Stage, guest: Guest) -> list[str]:
    found = (await stage.get(f"/os-migrations?instance_uuid={guest.id}"))["migrations"]
    return [f"{one['migration_type']} {one['status']}" for one in found]


async def _ended(process: psutil.Process) -> bool:
    return has_ended(process)


async def _when(done: Awaitable[object]) -> float:
    await done
    return time.monotonic()
