"""`POST /placement/explain`: where guests would be placed now, and why not elsewhere. A dry run: nothing is claimed."""

from typing import Annotated, Any

from pydantic import Field
from starlette.responses import Response
from virtfleet_common.errors import NotFound
from virtfleet_common.messages import ExplainPlacement

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.server_bodies import CreateServer
from virtfleet_api.context import Call
from virtfleet_api.microversions import MAXIMUM
from virtfleet_api.routing import Dialect, Endpoint
from virtfleet_api.validation import Body, Whole, validated

HostName = Annotated[str, Field(min_length=1, max_length=255)]
_NETWORKS = {"networks": "none"}


class Placement(Body):
    """What is to be placed. In its stead, the body of a create (`{"server": {...}, "os:scheduler_hints": {...}}`)."""

    flavor: HostName
    image: HostName | None = None
    availability_zone: HostName | None = None
    hints: dict[str, Any] = Field(default_factory=dict)
    excluded: list[HostName] = Field(default_factory=list, max_length=1000)
    forced_host: HostName | None = None
    count: Annotated[Whole, Field(ge=1, le=1000)] = 1
    project_id: HostName | None = None


async def explain(call: Call) -> Response:
    """Ask a scheduler."""
    question = await _question(call)
    if call.services.placements is None:
        raise NotFound("No scheduler can be asked.", rule="placement.served")
    explained = await call.services.placements.explain(question)
    return answer({"hosts": list(explained.hosts), "explanations": [dict(one) for one in explained.explanations]})


async def _question(call: Call) -> ExplainPlacement:
    body = await call.json()
    if "server" in body:
        return _of_create(call, body)
    asked = validated(Placement, body, MAXIMUM).model_dump()
    return ExplainPlacement(**asked | {"project_id": asked["project_id"] or call.who.project_id})


def _of_create(call: Call, body: dict[str, Any]) -> ExplainPlacement:
    server = body["server"]
    if isinstance(server, dict):  # what a placement does not look at need not be said
        body = {**body, "server": {"name": "explained", **_NETWORKS, **server}}
    request = validated(CreateServer, body, MAXIMUM).request(MAXIMUM)
    return ExplainPlacement(
        project_id=call.who.project_id,
        flavor=request.flavor,
        image=request.image,
        availability_zone=request.availability_zone,
        hints=request.hints,
        count=request.max_count,
    )


DIALECT = Dialect("placement", ("/placement",), (Endpoint("POST", "/explain", explain, "hosts:read", body=Placement),))
