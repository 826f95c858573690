"""The `virtfleet` command: a whole fleet on this machine, started, watched, broken and mended by hand."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from virtfleet_common import dead_letters
from virtfleet_common.auditor import AuditReport, as_lines
from virtfleet_common.auditor import audit as claims_audit
from virtfleet_common.errors import VirtfleetError
from virtfleet_common.quota_audit import Findings, QuotaAudit
from virtfleet_common.settings import CommonSettings
from virtfleet_common.store import Store

from virtfleet_local import credentials, guest_image
from virtfleet_local.credentials import User
from virtfleet_local.fleet import LocalFleet, NoSuchPartError
from virtfleet_local.layout import FleetFile, HypervisorKind
from virtfleet_local.processes import StartError
from virtfleet_local.show import NEWS, events_of, hosts_table, processes_table

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_host = typer.Typer(help="Cut a host's power, and give it back.", no_args_is_help=True)
_service = typer.Typer(help="Kill a service (or a host's agent), and start it again.", no_args_is_help=True)
_broker = typer.Typer(help="Restart the broker, or make it lose everything.", no_args_is_help=True)
_db = typer.Typer(help="Restart the database.", no_args_is_help=True)
_image = typer.Typer(help="The guest that QEMU hosts run.", no_args_is_help=True)
_letters = typer.Typer(help="Messages that could not be handled.", no_args_is_help=True)
_GROUPS = {"host": _host, "service": _service, "broker": _broker, "db": _db, "letters": _letters, "image": _image}
for _name, _group in _GROUPS.items():
    app.add_typer(_group, name=_name)

Data = Annotated[Path, typer.Option(envvar="VIRTFLEET_DATA", help="The folder that holds all the fleet has.")]
Ids = Annotated[list[str], typer.Argument(help="As `virtfleet letters list` shows them.")]
Name = Annotated[str, typer.Argument(help="As `virtfleet status` shows it.")]
_DATA = Path(".virtfleet")
_AUDIT_GRACE = 5.0
_console = Console()


@app.command()
def up(
    hosts: Annotated[int, typer.Option(min=1, max=200, help="How many hosts.")] = 3,
    hypervisor: Annotated[HypervisorKind, typer.Option(help="Real QEMU guests, or libvirt's simulated ones.")] = "qemu",
    shared_storage: Annotated[
        bool, typer.Option("--shared-storage", help="All hosts keep their guests' disks in one folder.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Give the prompt back; stop it with `virtfleet down`.")
    ] = False,
    data: Data = _DATA,
) -> None:
    """Start a fleet; without --detach, stay, and stop it on Ctrl-C."""
    fleet = LocalFleet(data, hosts=hosts, hypervisor=hypervisor, shared_storage=shared_storage)
    if fleet.is_up():
        running = fleet.file
        _say(f"The fleet is already up: {len(running.hosts)} {running.hypervisor} hosts, API at {running.api_url}")
        return
    signal.signal(signal.SIGTERM, _interrupt)
    with _explained(), _console.status("Starting") as status:
        if hypervisor == "qemu" and guest_image.find() is None:
            status.update("Building the guest image")
            guest_image.build()
        fleet.up(report=status.update)
    _greet(fleet.file, data)
    if not detach:
        _stay(fleet)


@app.command()
def down(data: Data = _DATA) -> None:
    """Stop the fleet, guests and all. Its data stays for the next `up`."""
    with _console.status("Stopping"):
        LocalFleet(data).down()
    _say("The fleet is down.")


@app.command()
def status(data: Data = _DATA) -> None:
    """Show every process and every host. Exits with 1 when the fleet is not up."""
    fleet = LocalFleet(data)
    if not fleet.is_up():
        _fail(f"No fleet runs from {data}: start one with `virtfleet up`.")
    _console.print(processes_table(fleet), hosts_table(fleet))


@app.command()
def env(
    user: Annotated[User, typer.Option("--as", help="Whose token: `other` is a member of another project.")] = "member",
    data: Data = _DATA,
) -> None:
    """Print FLEET_API, FLEET_TOKEN and FLEET_AMQP, for `eval "$(virtfleet env)"`."""
    with _explained():
        typer.echo(credentials.shell(LocalFleet(data).file, user))


@app.command()
def clouds(data: Data = _DATA) -> None:
    """Print a clouds.yaml for OpenStack's clients: `virtfleet clouds > clouds.yaml`."""
    with _explained():
        typer.echo(credentials.clouds(LocalFleet(data).file))


@app.command()
def watch(
    patterns: Annotated[
        list[str] | None, typer.Argument(help="Which events: routing keys, as `instance.reboot.#`; all but heartbeats.")
    ] = None,
    data: Data = _DATA,
) -> None:
    """Show events as they happen, until Ctrl-C."""
    with _explained():
        asyncio.run(_watch(LocalFleet(data).file, patterns or NEWS))


@_host.command("kill")
def host_kill(name: Name, data: Data = _DATA) -> None:
    """Power cut: the agent and its guests die at once."""
    killed = _try(lambda: LocalFleet(data).kill_host(name))
    _say(f"{name} is off; guests that died with it: {killed}.")


@_host.command("start")
def host_start(name: Name, data: Data = _DATA) -> None:
    """Power on."""
    _try(lambda: LocalFleet(data).start_host(name))
    _say(f"{name} is on.")


@_service.command("kill")
def service_kill(name: Name, data: Data = _DATA) -> None:
    """`kill -9`."""
    _try(lambda: LocalFleet(data).kill_service(name))
    _say(f"{name} was killed.")


@_service.command("start")
def service_start(name: Name, data: Data = _DATA) -> None:
    """Start it, and wait until it is ready."""
    _try(lambda: LocalFleet(data).start_service(name))
    _say(f"{name} is ready.")


@_broker.command("restart")
def broker_restart(data: Data = _DATA) -> None:
    """Stop RabbitMQ and start it again."""
    _try(lambda: LocalFleet(data).running().broker.restart())
    _say("The broker is back.")


@_broker.command("wipe")
def broker_wipe(data: Data = _DATA) -> None:
    """Make RabbitMQ lose every queue and every message."""
    _try(lambda: LocalFleet(data).running().broker.wipe())
    _say("The broker is back, and empty.")


@_db.command("restart")
def db_restart(data: Data = _DATA) -> None:
    """Stop MongoDB and start it again."""
    _try(lambda: LocalFleet(data).running().database.restart())
    _say("The database is back.")


@_letters.command("list")
def letters_list(data: Data = _DATA) -> None:
    """Show every dead letter: what it was, and why it is one."""
    _letters_do("list", [], data)


@_letters.command("replay")
def letters_replay(ids: Ids, data: Data = _DATA) -> None:
    """Send letters again, once what was wrong is mended."""
    _letters_do("replay", ids, data)


@_letters.command("drop")
def letters_drop(ids: Ids, data: Data = _DATA) -> None:
    """Throw letters away."""
    _letters_do("drop", ids, data)


@app.command()
def audit(data: Data = _DATA) -> None:
    """Prove that what hosts and quotas hold is what the instances need; mend what leaked, name every difference."""
    with _explained():
        report, findings = asyncio.run(_audited(LocalFleet(data).file))
    for line in as_lines(report):
        _say(line)
    for one in findings:
        _say(f"quota of project {one.project_id} (mended): {one}")
    raise typer.Exit(0 if not report.differences and not findings else 1)


async def _audited(file: FleetFile) -> tuple[AuditReport, Sequence[Findings]]:
    store = Store.connect(CommonSettings(mongodb_url=file.mongodb_url))
    try:
        return await claims_audit(store, grace=_AUDIT_GRACE), await QuotaAudit(store, _AUDIT_GRACE).run()
    finally:
        store.close()


@_image.command("build")
def image_build() -> None:
    """Build the guest image, unless it is there."""
    with _explained(), _console.status("Building the guest image"):
        image = guest_image.build()
    _say(f"The guest image is in {image.kernel.parent}.")


def _greet(file: FleetFile, data: Path) -> None:
    _say(f"The fleet is up: {len(file.hosts)} {file.hypervisor} hosts, API at {file.api_url}")
    _say(
        f"Its addresses and tokens are in {data / 'fleet.json'}. See also `virtfleet status`, `watch`, `env`, `clouds`."
    )


def _stay(fleet: LocalFleet) -> None:
    """Wait for Ctrl-C, SIGTERM, or a `virtfleet down` elsewhere, which takes fleet.json away."""
    _say("Ctrl-C stops it.")
    try:
        while (fleet.data / "fleet.json").exists():
            threading.Event().wait(1)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with _console.status("Stopping"):
            fleet.down()
    _say("The fleet is down.")


async def _watch(file: FleetFile, patterns: Sequence[str]) -> None:
    async for line in events_of(file.amqp_url, *patterns):
        _console.print(line, soft_wrap=True)


def _letters_do(command: str, ids: list[str], data: Path) -> None:
    with _explained():
        for line in asyncio.run(dead_letters.run(LocalFleet(data).file.amqp_url, command, ids)):
            typer.echo(line)


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True, highlight=False)


def _try(do: Callable[[], object]) -> object:
    with _explained(), _console.status("Working"):
        return do()


@contextmanager
def _explained() -> Iterator[None]:
    """What went wrong is said in a sentence; a traceback is for bugs."""
    try:
        yield
    except (StartError, NoSuchPartError, guest_image.BuildError, VirtfleetError) as error:
        hint = getattr(error, "hint", None)
        _fail(f"{error} {hint}" if hint else str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(why: str) -> NoReturn:
    Console(stderr=True).print(why, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
