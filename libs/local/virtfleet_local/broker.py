"""A private RabbitMQ node: its own data folder, ports, name service and users, sharing nothing with a system one.

Three users exist: `virtfleet`, as whom the services speak, and `member` and `other`, for programs of two projects. The
latter may send commands under `instance.*` alone and hear the events; the steps between services are closed to them.
"""

import base64
import hashlib
import json
import os
import secrets
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from virtfleet_local.processes import ManagedProcess, StartError, free_ports, is_free, is_listening

SERVICE_USER = "virtfleet"
PROGRAM_USERS = ("member", "other")
_USERS = (SERVICE_USER, *PROGRAM_USERS)
_PORTS = ("port", "names_port", "peer_port")
_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
# A program's own queues: those the broker names, and those under the program's user name.
_OWN_QUEUES = r"(amq\.gen|client|{user})[-.].*"


class Broker:
    """The fleet's RabbitMQ under `folder`. Ports and passwords are made once and kept in `broker.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = ManagedProcess("rabbitmq", folder)
        self._names = ManagedProcess("epmd", folder)

    @cached_property
    def _known(self) -> dict[str, Any]:
        """Ports and passwords, made when they are first asked for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "broker.json"
        if not file.exists():
            self._remember(_new_ports() | {"passwords": {user: secrets.token_urlsafe(18) for user in _USERS}})
        return dict(json.loads(file.read_text()))

    @property
    def port(self) -> int:
        """Where AMQP is spoken."""
        return int(self._known["port"])

    @property
    def url(self) -> str:
        """The services' address."""
        return self.url_of(SERVICE_USER)

    def url_of(self, user: str) -> str:
        """The address for one of the users."""
        return f"amqp://{user}:{self._known['passwords'][user]}@127.0.0.1:{self.port}/"

    def start(self, timeout: float = 90.0) -> None:
        """Start it and wait until it takes connections."""
        if self.process.is_running():
            return
        self._leave_taken_ports()
        self._write_configuration()
        self._names.start(["epmd", "-port", str(self._known["names_port"]), "-address", "127.0.0.1"], os.environ)
        self._names.wait_until(lambda: is_listening(self._known["names_port"]), 10)
        self.process.start([_server()], self._environment())
        self.process.wait_until(lambda: is_listening(self.port), timeout)

    def stop(self) -> None:
        """Stop it in good order; nothing when it is not running."""
        self.process.stop(timeout=30)
        self._names.stop()

    def kill(self) -> None:
        """End it at once, as a crash would. What was confirmed is on disk and comes back with `start`."""
        self.process.kill(with_children=True)
        self._names.kill()

    def restart(self) -> None:
        """Stop it and start it again: same users, ports, queues and durable messages."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Come back as a broker that lost everything: same users and ports, no queue, no exchange, no message."""
        self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _remember(self, known: dict[str, Any]) -> None:
        file = self.folder / "broker.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(known, indent=2))

    def _leave_taken_ports(self) -> None:
        """A port that somebody else took while the broker was stopped is exchanged, and the others with it."""
        self._names.stop()
        if not all(is_free(self._known[name]) for name in _PORTS):
            self._known.update(_new_ports())
            self._remember(self._known)

    def _write_configuration(self) -> None:
        (self.folder / "enabled_plugins").write_text("[].\n")
        definitions = self.folder / "definitions.json"
        definitions.touch(mode=0o600)
        definitions.write_text(json.dumps(_definitions(self._known["passwords"])))
        (self.folder / "rabbitmq.conf").write_text(_configuration(self.port, definitions))

    def _environment(self) -> dict[str, str]:
        """RabbitMQ is told everything here, so that no setting of a system-wide installation is read."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return inherited | {
            # Makes the start script become the server instead of waiting for it: the pid is the server's.
            "RUNNING_UNDER_SYSTEMD": "true",
            "HOME": str(self.folder),
            "ERL_EPMD_PORT": str(self._known["names_port"]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "virtfleet@localhost",
            "RABBITMQ_DIST_PORT": str(self._known["peer_port"]),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_SERVER_ERL_ARGS": _ERLANG,
        }


# One scheduler for each of two processors, not bound to them (other nodes may run here), that sleeps when idle; few
# I/O threads; small tables. A tenth of the memory of the defaults, which are for machines that do nothing else.
_ERLANG = (
    "+S 2:2 +SDcpu 1:1 +SDio 2 +A 1 +stbt u +sbwt none +sbwtdcpu none +sbwtdio none "
    "+P 65536 +Q 16384 +t 1048576 +zdbbl 32000 -kernel inet_dist_use_interface {127,0,0,1}"
)


def _new_ports() -> dict[str, int]:
    return dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))


def _configuration(port: int, definitions: Path) -> str:
    # The write-ahead log of quorum queues is kept in memory too until it is full: the default is 512 MiB.
    return (
        f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        f"load_definitions = {definitions}\n"
        "raft.wal_max_size_bytes = 16777216\n"
        "vm_memory_high_watermark.absolute = 512MiB\n"
        "log.console.level = warning\n"
    )


def _definitions(passwords: dict[str, str]) -> dict[str, Any]:
    """Users and permissions, in the shape of RabbitMQ's definitions file."""
    everything = {"user": SERVICE_USER, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [_user(name, password) for name, password in passwords.items()],
        "vhosts": [{"name": "/"}],
        "permissions": [everything, *(_program_permissions(user) for user in PROGRAM_USERS)],
        "topic_permissions": [_program_topics(user) for user in PROGRAM_USERS],
    }


def _program_permissions(user: str) -> dict[str, str]:
    own = _OWN_QUEUES.format(user=user)
    return {
        "user": user,
        "vhost": "/",
        "configure": f"^{own}$",
        "write": rf"^({own}|virtfleet\.commands)$",
        "read": rf"^({own}|virtfleet\.events)$",
    }


def _program_topics(user: str) -> dict[str, str]:
    return {"user": user, "vhost": "/", "exchange": "virtfleet.commands", "write": r"^instance\.", "read": "^$"}


def _user(name: str, password: str) -> dict[str, Any]:
    salt = secrets.token_bytes(4)
    digest = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    algorithm = "rabbit_password_hashing_sha256"
    return {"name": name, "password_hash": digest, "hashing_algorithm": algorithm, "tags": "", "limits": {}}


def _server() -> Path:
    """The server's own start script: Debian's wrapper on the path insists on the system's user and folders."""
    if _SERVER.exists():
        return _SERVER
    if found := shutil.which("rabbitmq-server"):
        return Path(found)
    raise StartError("There is no RabbitMQ on this machine: install rabbitmq-server, or run `make setup`.")
