"""Who this host is, kept beside its guests: an agent that is not sure that they are its own does not start.

It refuses, and touches nothing, when its host was renamed, when the database is another fleet's, when its identity was
wiped, and when the record knows this name as another machine's.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from virtfleet_common.errors import Faulty
from virtfleet_common.records import FLEET, Fleet, Host
from virtfleet_common.store import Store


class WrongIdentity(Faulty):
    """This agent must not take work: what it is and what the record says do not agree."""

    code = "wrong_identity"


@dataclass(frozen=True, slots=True)
class Identity:
    """What `identity.json` says: the host's name and uuid, and the fleet that it belongs to."""

    host: str
    uuid: str
    fleet: str


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


async def fleet_id(store: Store) -> str:
    """The id of the fleet whose database this is; made by whoever asks first."""
    await store.fleet.add(Fleet(id=FLEET, uuid=str(uuid4())))
    found = await store.fleet.get(FLEET)
    if found is None:
        raise WrongIdentity("the database lost the fleet's id while it was read")
    return found.uuid


def established(state_dir: Path, host: str, fleet: str, recorded: Host | None, *, has_guests: bool) -> str:
    """The host's uuid; made and kept at its first start, and only then. Raises WrongIdentity.

    `recorded` is what the database knows of a host of this name, `has_guests` whether guests of Virtfleet are here.
    """
    path = state_dir / "identity.json"
    known = _read(path)
    if known is None:
        _check_first_start(path, host, recorded, has_guests=has_guests)
        known = Identity(host, str(uuid4()), fleet)
        _write(path, known)
    if known.host != host:
        raise WrongIdentity(f"{path} is of host {known.host}, and this agent is called {host}")
    if known.fleet != fleet:
        raise WrongIdentity(f"{path} is of fleet {known.fleet}, and this is the database of fleet {fleet}")
    if recorded is not None and recorded.uuid != known.uuid:
        raise WrongIdentity(f"the record knows host {host} as {recorded.uuid}, and {path} says {known.uuid}")
    return known.uuid


def _check_first_start(path: Path, host: str, recorded: Host | None, *, has_guests: bool) -> None:
    """A host without an identity must be a new one: nobody knows its name, and nothing runs on it."""
    if recorded is not None:
        raise WrongIdentity(
            f"{path} is gone, and the record knows host {host} as {recorded.uuid}: put the file back, or delete the "
            "compute service once it has no instances"
        )
    if has_guests:
        raise WrongIdentity(f"{path} is gone, and guests of Virtfleet are on this host: put the file back")


def _read(path: Path) -> Identity | None:
    try:
        return Identity(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise WrongIdentity(f"{path} cannot be read: {error}") from error


def _write(path: Path, identity: Identity) -> None:
    """Whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(identity)))
    part.rename(path)
