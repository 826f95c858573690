"""The dry run of placement, and the small part of the Network API that clients look at."""

from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.messages import ExplainPlacement

from .api import Api, error_of

EXPLAIN = "/placement/explain"


async def test_a_dry_run_asks_a_scheduler_what_it_would_do(api: Api) -> None:
    body = {
        "flavor": "tiny", "image": "linux", "hints": {"group": "g"}, "count": 2, "excluded": ["a"],
        "availability_zone": "east", "project_id": "p",
    }  # fmt: skip
    answer = await api.ask("POST", EXPLAIN, body, who="admin")
    assert answer.json() == {"hosts": ["best", None], "explanations": [{"chosen": "best"}, {"refused": "all"}]}
    assert api.oracle.asked == [ExplainPlacement(**body)]


async def test_the_body_of_a_create_can_be_explained_before_it_is_sent(api: Api) -> None:
    server = {"flavorRef": "1", "imageRef": "linux", "max_count": 3, "availability_zone": "east"}
    body = {"server": server, "os:scheduler_hints": {"group": ["g"]}}
    assert (await api.ask("POST", EXPLAIN, body, who="admin")).status_code == 200
    expected = ExplainPlacement(
        project_id=api.project, flavor="1", image="linux", count=3, availability_zone="east", hints={"group": "g"}
    )
    assert api.oracle.asked == [expected]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "'flavor' is a required property"),
        ({"flavor": "tiny", "colour": "red"}, "'colour' was unexpected"),
        ({"flavor": "tiny", "count": 0}, "count"),
        ({"flavor": "unheard-of"}, "Flavor unheard-of could not be found."),
        ({"server": {}}, "'flavorRef' is a required property"),
        ({"server": 5}, "server"),
    ],
)
async def test_a_question_that_is_not_sound_is_refused(api: Api, body: Any, says: str) -> None:
    status, _, message = error_of(await api.ask("POST", EXPLAIN, body, who="admin"))
    assert status == 400
    assert says in message


async def test_only_admins_see_hosts(api: Api) -> None:
    assert (await api.ask("POST", EXPLAIN, {"flavor": "tiny"})).status_code == 403


async def test_there_are_no_networks_to_list(api: Api) -> None:
    for prefix in ("/v2.0", "/network/v2.0"):
        for kind in ("networks", "ports", "subnets", "security-groups"):
            answer = await api.ask("GET", f"{prefix}/{kind}?device_id={uuid4()}")
            assert answer.json() == {kind.replace("-", "_"): []}
    unknown = await api.ask("GET", "/v2.0/networks/lan")
    assert unknown.status_code == 404
    assert unknown.json()["NeutronError"]["type"] == "NotFound"
    assert (await api.ask("GET", "/network", who="")).json()["versions"][0]["id"] == "v2.0"
    assert (await api.ask("GET", f"/v2.0/quotas/{api.project}")).json()["quota"]["network"] == 0
