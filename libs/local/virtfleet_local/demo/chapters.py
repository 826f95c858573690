"""The first act, chapter by chapter. Each does something to the fleet, and goes on when it has seen what came of it."""

import asyncio
import signal
from pathlib import Path

import psutil
from virtfleet_common.messages import RebootInstance

from virtfleet_local.demo import console_text, host_side, moves
from virtfleet_local.demo.sights import Sight
from virtfleet_local.demo.stage import DEADLINE, Guest, Stage, demand

POLITE, STUBBORN = "polite", "stubborn"
_IMAGES = {POLITE: "tiny", STUBBORN: "tiny-deaf"}
_IMPATIENT = {"VIRTFLEET_SOFT_REBOOT_TIMEOUT": "5"}
FAILPOINTS = "failpoints"
"""The folder, below the fleet's, where the agents look whether they are to die."""


async def hosts(stage: Stage) -> None:
    """The fleet itself."""

    async def look() -> list[str]:
        services = (await stage.get("/os-services?binary=nova-compute"))["services"]
        return [service["host"] for service in services if service["state"] == "up"]

    up = await stage.until("three hosts", look, lambda seen: len(seen) == 3)
    stage.screen.saw(Sight.HOSTS_UP, ", ".join(up))


async def create(stage: Stage) -> None:
    """Two guests, asked for over AMQP."""
    guests = await asyncio.gather(*(stage.create(name, image) for name, image in _IMAGES.items()))
    stage.screen.saw(Sight.CREATED, ", ".join(f"{guest.name} on {guest.host}" for guest in guests))
    for guest in guests:
        await stage.ready(guest, 1)
    stage.screen.saw(Sight.READY, "POST .../action os-getConsoleOutput")


async def reboot_softly(stage: Stage) -> None:
    """The guest is asked to restart itself."""
    guest = stage.guests[POLITE]
    before = await stage.console(guest)
    stage.screen.says(f'POST /v2.1/servers/{guest.id}/action {{"reboot": {{"type": "SOFT"}}}}')
    action = await stage.post(f"/servers/{guest.id}/action", {"reboot": {"type": "SOFT"}})
    await stage.tale.end_of(action)
    after = await stage.ready(guest, 2)
    pressed = console_text.presses(after) > console_text.presses(before) and console_text.has_switched_off(after)
    demand(pressed, f"the console shows no power button: {after}")
    stage.screen.saw(Sight.BUTTON)
    first, *_, latest = console_text.boots(after)
    demand(first != latest, f"the console shows one boot: {after}")
    stage.screen.saw(Sight.FRESH_BOOT, f"{first[:8]}..., then {latest[:8]}...")
    demand(console_text.latest_mark(after) == first, f"the disk has lost its mark: {after}")
    stage.screen.saw(Sight.DISK_KEPT)


async def reboot_hard(stage: Stage) -> None:
    """The guest is taken down and made anew from its record."""
    guest = stage.guests[POLITE]
    before, console = stage.running(guest), await stage.console(guest)
    action = await _hard(stage, guest)
    await stage.tale.end_of(action)
    after = stage.running(guest)
    demand(after.pid != before.pid and after.domain_id != before.domain_id, f"{before} is now {after}")
    stage.screen.saw(Sight.NEW_DOMAIN, f"domain {before.domain_id}, now {after.domain_id}")
    _demand_defined_by(stage, guest, action)
    stage.screen.saw(Sight.NEW_XML, action)
    now = await stage.ready(guest, 3)
    demand(console_text.presses(now) == console_text.presses(console), f"the power button was pressed: {now}")
    stage.screen.saw(Sight.NO_BUTTON)


async def kill_agent(stage: Stage) -> None:
    """An agent dies at the worst moment of a hard reboot, and its work is finished all the same."""
    screen, guest = stage.screen, stage.guests[STUBBORN]
    screen.says(f"{guest.host}'s agent will kill -9 itself in the middle of its next hard reboot")
    agent = psutil.Process(stage.fleet.process(guest.host).pid)
    _arm(stage, "reboot_hard.middle")
    action = await _hard(stage, guest)
    code = await asyncio.to_thread(agent.wait, DEADLINE)
    demand(code in {-signal.SIGKILL, None}, f"the agent ended with {code}")
    screen.saw(Sight.AGENT_DIED, f"pid {agent.pid}")
    await _demand_half_done(stage, guest)
    screen.says(f"starting {guest.host}'s agent again, and telling it to be less patient with guests")
    await asyncio.to_thread(stage.fleet.start_service, guest.host, _IMPATIENT)
    await stage.tale.end_of(action)
    screen.saw(Sight.FINISHED, action)
    _demand_defined_by(stage, guest, action)
    await stage.ready(guest, 2)
    screen.saw(Sight.ONE_GUEST, f"domain {stage.running(guest).domain_id}")


async def fall_back(stage: Stage) -> None:
    """A soft reboot of a guest that does not listen becomes a hard one."""
    screen, guest = stage.screen, stage.guests[STUBBORN]
    before = stage.running(guest)
    screen.says(f'POST /v2.1/servers/{guest.id}/action {{"reboot": {{"type": "SOFT"}}}}')
    action = await stage.post(f"/servers/{guest.id}/action", {"reboot": {"type": "SOFT"}})
    await stage.console_with(guest, "an ignored power button", lambda text: console_text.ignores(text) > 0)
    screen.saw(Sight.IGNORED)
    await stage.tale.end_of(action)
    steps = await stage.steps_of(guest, action)
    demand("soft_reboot_fell_back" in steps, f"the action's steps were {steps}")
    screen.saw(Sight.FELL_BACK, steps["soft_reboot_fell_back"]["details"])
    demand(stage.running(guest).domain_id != before.domain_id, f"{guest.name} is still {before}")
    await stage.ready(guest, 3)
    screen.saw(Sight.FORCED, f"domain {before.domain_id}, now {stage.running(guest).domain_id}")


async def resize(stage: Stage) -> None:
    """See `moves`."""
    await moves.resize(stage, stage.guests[POLITE])


async def migrate_and_return(stage: Stage) -> None:
    """See `moves`."""
    await moves.migrate_and_return(stage, stage.guests[POLITE])


async def find_no_room(stage: Stage) -> None:
    """See `moves`."""
    await moves.find_no_room(stage, stage.guests[POLITE])


async def delete(stage: Stage) -> None:
    """Nothing is left."""
    screen, ids = stage.screen, [guest.id for guest in stage.guests.values()]
    for id_ in ids:
        screen.says(f"DELETE /v2.1/servers/{id_}")
    for action in [await stage.delete(f"/servers/{id_}") for id_ in ids]:
        await stage.tale.end_of(action)
    demand(not any([await stage.get(f"/servers/{id_}") for id_ in ids]), "the API still knows a deleted guest")
    screen.saw(Sight.DELETED, "404")
    processes = [process for id_ in ids for process in host_side.running(stage.data, id_)]
    demand(not processes, f"guests are left: {processes}")
    screen.saw(Sight.NO_PROCESS)
    files = host_side.files_of(stage.data, ids)
    demand(not files, f"files are left: {files}")
    screen.saw(Sight.NO_FILE)
    used = await stage.until("released claims", lambda: _used(stage), lambda seen: not any(seen.values()))
    screen.saw(Sight.RELEASED, ", ".join(f"{host} {mib} MiB used" for host, mib in used.items()))
    begun = stage.tale.begun()
    endings = {action: len(stage.tale.endings(action)) for action in begun}
    demand(all(count == 1 for count in endings.values()), f"ends per action: {endings}")
    screen.saw(Sight.ENDED_ONCE, f"{len(begun)} actions")


async def _hard(stage: Stage, guest: Guest) -> str:
    stage.screen.says(f"instance.reboot: {guest.name}, HARD")
    accepted = await stage.client.command(RebootInstance(instance_id=guest.id, type="HARD"))
    return accepted.action_id


async def _demand_half_done(stage: Stage, guest: Guest) -> None:
    running = host_side.running(stage.data, guest.id)
    demand(not running, f"the guest runs as {running} while its agent is dead")
    server = (await stage.get(f"/servers/{guest.id}"))["server"]
    task = server["OS-EXT-STS:task_state"]
    demand(task == "reboot_started_hard", f"the record says {server['status']}, {task}")
    stage.screen.saw(Sight.GUEST_IS_OFF, f"{server['status']}, {task}")


def _demand_defined_by(stage: Stage, guest: Guest, action: str) -> None:
    mark = host_side.defined_by(stage.data, guest.host, guest.id)
    demand(mark == action, f"the definition of {guest.name} names {mark} in place of {action}")


def _arm(stage: Stage, point: str) -> None:
    Path(stage.data, FAILPOINTS, point).write_text("kill")


async def _used(stage: Stage) -> dict[str, int]:
    hypervisors = (await stage.get("/os-hypervisors/detail"))["hypervisors"]
    return {one["service"]["host"]: one["memory_mb_used"] for one in hypervisors}
