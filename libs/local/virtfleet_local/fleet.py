"""A whole fleet on one machine: broker, database, the services and their hosts, each a process of its own.

    with LocalFleet(Path("/tmp/fleet"), hosts=3, hypervisor="test") as fleet:
        httpx.get(f"{fleet.file.api_url}/v2.1/servers", headers={"X-Auth-Token": fleet.file.token})

Everything is found again from the folder alone, so another process may inspect, break, mend or stop the fleet.
"""

import fcntl
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from virtfleet_local import hosts as machines
from virtfleet_local.broker import Broker
from virtfleet_local.database import Database
from virtfleet_local.guest_image import catalogue
from virtfleet_local.layout import (
    Extra,
    FleetFile,
    HypervisorKind,
    Service,
    environment,
    host_names,
    services,
)
from virtfleet_local.processes import ManagedProcess, StartError, free_ports
from virtfleet_local.readiness import await_hosts, await_services
from virtfleet_local.seed import new_token, seed

Report = Callable[[str], None]
DATABASE_NAME = "virtfleet"
_USERS = ("admin", "member", "other")


class NoSuchPartError(LookupError):
    """No host or service of the fleet has that name. The message says which there are."""


class LocalFleet:
    """The fleet whose data is under `data`. What it was started with is read from there when it runs already.

    `shared_storage`: all hosts keep their guests' disks in one folder, as on NFS or CephFS.
    """

    def __init__(
        self,
        data: Path,
        hosts: int = 3,
        hypervisor: HypervisorKind = "test",
        env: Extra | None = None,
        replicas: Mapping[str, int] | None = None,
        *,
        shared_storage: bool = False,
    ) -> None:
        self.data = data.absolute()
        self.broker = Broker(self.data / "broker")
        self.database = Database(self.data / "database")
        self._hosts = host_names(hosts)
        self._hypervisor: HypervisorKind = hypervisor
        self._shared_storage = shared_storage
        self._env = {key: dict(added) for key, added in (env or {}).items()}
        self._replicas = dict(replicas or {})

    @property
    def file(self) -> FleetFile:
        """What `fleet.json` says. Raises StartError when no fleet was started here."""
        return FleetFile.model_validate_json(self.running()._path.read_text())

    def is_up(self) -> bool:
        """Whether the fleet of this folder runs: its broker, its database and its api."""
        if FleetFile.read(self._path) is None:
            return False
        return all(process.is_running() for process in (*self._foundations(), self.process("api")))

    def running(self) -> Self:
        """This fleet, if one was started here. Raises StartError otherwise."""
        if FleetFile.read(self._path) is None:
            raise StartError(f"No fleet runs from {self.data}: start one with `virtfleet up`.")
        return self

    def up(self, report: Report = lambda _: None) -> None:
        """Start everything and wait until it is ready. On any failure all is stopped again, and the failure raised."""
        with self._locked():
            if self.is_up():
                return
            self._sweep()
            try:
                self._start(report)
            except BaseException:
                self._sweep()
                raise

    def down(self) -> None:
        """Stop everything, guests included; nothing when nothing runs. The data stays."""
        with self._locked():
            self._sweep()

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def process(self, name: str) -> ManagedProcess:
        """The process of a service, or of a host's agent."""
        return ManagedProcess(name, self.data / "services")

    def services(self) -> list[Service]:
        """Every service process the fleet should have."""
        return services(self.file.hosts, self.file.replicas)

    def kill_service(self, name: str) -> None:
        """`kill -9` one service, or one agent (its guests live on)."""
        self.process(self._service(name).name).kill()

    def stop_service(self, name: str) -> None:
        """Stop one service in good order."""
        self.process(self._service(name).name).stop()

    def start_service(self, name: str, env: Mapping[str, str] | None = None, *, wait: bool = True) -> None:
        """Start one service, with more environment if given, and wait until it says that it is ready."""
        service = self._service(name)
        self._launch(service, env or {})
        if wait:
            await_services(self.file, {service.name: self.process(service.name)})

    def kill_host(self, host: str) -> int:
        """Cut a host's power: its agent and its guests die at once. Returns how many guests died."""
        agent = self._host(host)
        guests = {guest.pid for guest in machines.guests(self.data, host)}
        self.process(agent.name).kill(with_children=True)  # guests are its children, as long as it lives
        died = guests | machines.kill_guests(self.data, host)
        machines.power_on(self.data, host, afresh=True)  # for when it is switched on again
        return len(died)

    def start_host(self, host: str, env: Mapping[str, str] | None = None) -> None:
        """Power on: the agent starts, and with it the guests that the record says are running here."""
        self.start_service(self._host(host).name, env)

    def connect(self) -> Any:
        """A client of the fleet's database; `["virtfleet"]` is where its collections are."""
        return self.database.connect()

    @property
    def _path(self) -> Path:
        return self.data / "fleet.json"

    def _foundations(self) -> tuple[ManagedProcess, ManagedProcess]:
        return self.broker.process, self.database.process

    def _start(self, report: Report) -> None:
        report("Starting RabbitMQ and MongoDB")
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(self.broker.start), pool.submit(self.database.start)]:
                started.result()
        tokens = self._tokens()
        report("Writing users, flavors and images")
        with self.connect() as client:
            seed(client[DATABASE_NAME], tokens, catalogue() if self._hypervisor == "qemu" else [])
        self._write_file(tokens)
        report(f"Starting the services and {len(self._hosts)} hosts")
        self._start_services(report)
        self._write_pids()

    def _start_services(self, report: Report) -> None:
        running = {service.name: self.process(service.name) for service in self.services()}
        with self.connect() as client:
            before = client.admin.command("hello")["localTime"]
            for service in self.services():
                self._launch(service, {})
            report("Waiting for the services to be ready")
            await_services(self.file, running)
            report("Waiting for the hosts' first heartbeats")
            await_hosts(client[DATABASE_NAME], {host: running[host] for host in self.file.hosts}, since=before)

    def _launch(self, service: Service, env: Mapping[str, str]) -> None:
        if service.kind == "agent":
            is_simulated = self.file.hypervisor == "test"  # such a hypervisor lives and dies with its agent
            machines.power_on(self.data, service.name, afresh=is_simulated)
            if not is_simulated:
                machines.prepare_root(self.data, service.name)
        argv = [sys.executable, "-m", service.module]
        folder = self.data / "services"
        folder.mkdir(parents=True, exist_ok=True)
        self.process(service.name).start(argv, environment(service, self.file, self.data) | dict(env), cwd=folder)

    def _write_file(self, tokens: Mapping[str, str]) -> None:
        names = [service.name for service in services(self._hosts, self._replicas)]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        FleetFile(
            api_url=f"http://127.0.0.1:{ports['api']}",
            amqp_url=self.broker.url,
            mongodb_url=self.database.url,
            token=tokens["admin"],
            member_token=tokens["member"],
            other_member_token=tokens["other"],
            member_amqp_url=self.broker.url_of("member"),
            other_member_amqp_url=self.broker.url_of("other"),
            hosts=self._hosts,
            hypervisor=self._hypervisor,
            shared_storage=self._shared_storage,
            replicas=self._replicas,
            ports=ports,
            env=self._env,
        ).write(self._path)

    def _write_pids(self) -> None:
        named = {name: self.process(name).pid for name in self.file.ports}
        named |= {"rabbitmq": self.broker.process.pid, "mongod": self.database.process.pid}
        running = {name: pid for name, pid in named.items() if pid}
        self.file.model_copy(update={"pids": running}).write(self._path)

    def _sweep(self) -> None:
        """Stop whatever runs from this folder: the services, then guests, then what they all stood on."""
        left = [self.process(file.stem) for file in (self.data / "services").glob("*.pid")]
        with ThreadPoolExecutor(max_workers=16) as pool:
            list(pool.map(ManagedProcess.stop, left))
            machines.kill_guests(self.data)
            list(pool.map(lambda part: part.stop(), (self.broker, self.database)))
        machines.remove_link(self.data)
        self._path.unlink(missing_ok=True)

    def _tokens(self) -> dict[str, str]:
        """The tokens of this folder, made once, so that a fleet that comes back is spoken to as before."""
        file = self.data / "tokens.json"
        if not file.exists():
            file.touch(mode=0o600)
            file.write_text(json.dumps({user: new_token() for user in _USERS}))
        return dict(json.loads(file.read_text()))

    def _service(self, name: str) -> Service:
        known = {service.name: service for service in self.services()}
        if name not in known:
            raise NoSuchPartError(f"No service is called {name!r}: there are {', '.join(known)}.")
        return known[name]

    def _host(self, name: str) -> Service:
        if name not in self.file.hosts:
            raise NoSuchPartError(f"No host is called {name!r}: there are {', '.join(self.file.hosts)}.")
        return self._service(name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One `up` or `down` at a time in a folder; the kernel lets go of the lock when its holder dies."""
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
