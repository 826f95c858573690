"""The chapters in which a guest moves: resized and confirmed, migrated and taken back, and refused for want of room."""

from typing import Any

from rich.table import Table

from virtfleet_local.demo import console_text, host_side
from virtfleet_local.demo.sights import Sight
from virtfleet_local.demo.stage import Guest, Stage, demand

_LARGER, _HUGE = "m1.small", "demo.huge"
_HUGE_RAM_MB = 1_000_000


async def resize(stage: Stage, guest: Guest) -> None:
    """To a larger flavor, on another host, with its disk; then its owner is content."""
    first_boot, source = console_text.boots(await stage.console(guest))[0], guest.host
    flavor = await _flavor_id(stage, _LARGER)
    await _moved(stage, guest, await stage.act(guest, {"resize": {"flavorRef": flavor}}))
    console = await stage.ready(guest, 1)
    stage.screen.saw(Sight.MOVED, f"{source}, now {guest.host}")
    demand(console_text.latest_mark(console) == first_boot, f"the disk has lost its mark: {console}")
    stage.screen.saw(Sight.DATA_MOVED, first_boot)
    await stage.tale.end_of(await stage.act(guest, {"confirmResize": None}))
    server = (await stage.get(f"/servers/{guest.id}"))["server"]
    demand(server["flavor"]["original_name"] == _LARGER, f"the flavor is {server['flavor']}")
    stage.screen.saw(Sight.CONFIRMED, f"{server['status']}, {_LARGER}")
    await _is_only_on(stage, guest, guest.host)
    stage.screen.saw(Sight.SOURCE_CLEAN, source)


async def migrate_and_return(stage: Stage, guest: Guest) -> None:
    """To another host at the same size; then its owner takes it back."""
    home = guest.host
    await _moved(stage, guest, await stage.act(guest, {"migrate": None}, as_admin=True))
    await stage.ready(guest, 1)
    away = guest.host
    stage.screen.saw(Sight.MIGRATED, f"{home}, now {away}")
    await stage.tale.end_of(await stage.act(guest, {"revertResize": None}))
    guest.host = home
    stage.running(guest)
    await _is_only_on(stage, guest, home)
    stage.screen.saw(Sight.TAKEN_BACK, f"{home} again; nothing left on {away}")


async def find_no_room(stage: Stage, guest: Guest) -> None:
    """A size that no host has room for: the guest goes on as it was, and the refusal says why."""
    size = {"name": _HUGE, "vcpus": 1, "ram": _HUGE_RAM_MB, "disk": 2}
    flavor = await stage.make_flavor(size)
    ending = await stage.tale.ending_of(await stage.act(guest, {"resize": {"flavorRef": flavor}}))
    fault = ending.data["fault"] or {}
    demand(fault.get("code") == "no_valid_host", f"the action ended with {fault}")
    stage.screen.console.print(_as_table(fault["facts"]["explanation"]))
    stage.screen.saw(Sight.EXPLAINED, fault["message"])
    server = (await stage.get(f"/servers/{guest.id}"))["server"]
    demand(server["status"] == "ACTIVE", f"the guest is {server['status']}")
    stage.running(guest)
    stage.screen.saw(Sight.UNHARMED)


async def _moved(stage: Stage, guest: Guest, action: str) -> None:
    end = await stage.tale.end_of(action)
    demand(end.data["after"]["vm_state"] == "resized", f"{guest.name} is {end.data['after']}")
    demand(end.data["host"] != guest.host, f"{guest.name} is still on {guest.host}")
    guest.host = end.data["host"]
    stage.running(guest)


async def _is_only_on(stage: Stage, guest: Guest, host: str) -> None:
    async def look() -> list[str]:
        files = host_side.files_of(stage.data, [guest.id])
        return sorted({path.relative_to(stage.data / "hosts").parts[0] for path in files})

    await stage.until(f"files on {host} alone", look, lambda seen: seen == [host])


async def _flavor_id(stage: Stage, name: str) -> str:
    flavors = (await stage.get("/flavors"))["flavors"]
    return next(str(flavor["id"]) for flavor in flavors if flavor["name"] == name)


def _as_table(explanation: dict[str, Any]) -> Table:
    table = Table(title=f"Of {explanation['considered']} hosts, none can take it")
    for column in ("refused by", "hosts", "for example"):
        table.add_column(column)
    for row in explanation["refused"]:
        first = row["sample"][0]
        facts = ", ".join(f"{name} {value}" for name, value in first.items() if name != "host")
        table.add_row(row["filter"], str(row["count"]), f"{first['host']}: {facts}")
    return table
