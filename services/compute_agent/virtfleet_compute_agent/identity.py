"""Who this host is, kept beside its guests: an agent that is not sure that they are its own does not start."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from virtfleet_common.errors import Faulty
from virtfleet_common.records import Host


class WrongIdentity(Faulty):
    """This agent must not take work: what it is and what the record says do not agree."""

    code = "wrong_identity"


@contextmanager
def only_agent(state_dir: Path) -> Iterator[None]:
    """Hold the host's lock: one agent a host. Raises WrongIdentity if another one runs."""
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WrongIdentity(f"another agent works on {state_dir}") from None
        yield


def load(state_dir: Path, host: str) -> str:
    """The host's uuid, made at its first start. Raises WrongIdentity if the folder is of a host of another name."""
    path = state_dir / "identity.json"
    if not path.exists():
        path.write_text(json.dumps({"host": host, "uuid": str(uuid4())}))
    known = json.loads(path.read_text())
    if known["host"] != host:
        raise WrongIdentity(f"{path} is of host {known['host']}, and this agent is called {host}")
    return str(known["uuid"])


def check(recorded: Host | None, uuid: str) -> None:
    """Raises WrongIdentity if the record knows a host of this name with another uuid."""
    if recorded is not None and recorded.uuid != uuid:
        raise WrongIdentity(f"the record knows host {recorded.id} as {recorded.uuid}, and this agent is {uuid}")
