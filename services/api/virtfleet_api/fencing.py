"""`/fencing`: which hosts are lost, what proves that they are off, and why nothing does yet; and the word of an admin.

`POST /fencing/{host}/attest` is for whoever knows that a host is off, whatever the plug-in cannot find out.
"""

from typing import Annotated

from pydantic import Field
from starlette.responses import Response
from virtfleet_common.errors import NotFound
from virtfleet_common.records import Host
from virtfleet_common.states import HostState

from virtfleet_api import host_changes
from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.shapes import Shape
from virtfleet_api.context import Call
from virtfleet_api.microversions import MAXIMUM
from virtfleet_api.routing import Dialect, Endpoint
from virtfleet_api.validation import Body, validated


class Attestation(Body):
    """How the admin knows that the host is off: `pulled the plug`."""

    reason: Annotated[str, Field(min_length=1, max_length=255, pattern=r"\S")]


def view(host: Host) -> Shape:
    """How a host's fencing stands: pure, from its record."""
    proof, attempts = host.fence, host.fencing
    shape: Shape = {
        "host": host.id,
        "state": host.state,
        "is_forced_down": host.is_forced_down,
        "last_seen": host.last_seen,
        "lost_at": host.lost_at,
        "fence": proof.model_dump(exclude={"is_told"}) if proof else None,
    }
    if proof is None and attempts is not None and attempts.lost_at == host.lost_at:
        shape["attempts"] = attempts.model_dump(include={"attempts", "by", "until", "error", "output"})
    return shape


async def list_lost(call: Call) -> Response:
    """The hosts that are down."""
    hosts = await call.store.hosts.find()
    return answer({"hosts": [view(host) for host in hosts if host.state is HostState.DOWN]})


async def show(call: Call) -> Response:
    """One host, lost or not."""
    name = call.param("host")
    host = await call.store.hosts.get_brief(name)
    if host is None:
        raise NotFound(f"Compute host {name} could not be found.", rule="host_exists")
    return answer({"host": view(host)})


async def attest(call: Call) -> Response:
    """An admin says that a lost host is off."""
    asked = validated(Attestation, await call.json(), MAXIMUM)
    host = await host_changes.attest(call.store, call.param("host"), call.who.user_id, asked.reason)
    return answer({"host": view(host)})


DIALECT = Dialect(
    "fencing",
    ("/fencing",),
    (
        Endpoint("GET", "", list_lost, "hosts:read"),
        Endpoint("GET", "/{host}", show, "hosts:read"),
        Endpoint("POST", "/{host}/attest", attest, "hosts:manage", body=Attestation),
    ),
)
