"""Version documents and microversions."""

import pytest

from .api import Api, error_of


async def test_version_documents_need_no_token_and_lead_back_the_way_the_client_came(api: Api) -> None:
    both = (await api.ask("GET", "/", who="")).json()["versions"]
    assert [version["id"] for version in both] == ["v2.0", "v2.1"]
    for path in ("/v2.1", "/v2.1/"):
        document = (await api.ask("GET", path, who="")).json()["version"]
        assert (document["min_version"], document["version"]) == ("2.1", "2.87")
        assert document["links"][0]["href"] == "http://fleet.example/v2.1/"
    for version in both:
        assert (await api.http.get(version["links"][0]["href"])).status_code == 200


@pytest.mark.parametrize(
    ("headers", "used"),
    [
        ({}, "2.1"),
        ({"OpenStack-API-Version": "compute 2.47"}, "2.47"),
        ({"X-OpenStack-Nova-API-Version": "2.30"}, "2.30"),
        ({"OpenStack-API-Version": "compute 2.47", "X-OpenStack-Nova-API-Version": "2.30"}, "2.47"),
        ({"OpenStack-API-Version": "identity 3.1, compute latest"}, "2.87"),
        ({"OpenStack-API-Version": "placement 1.2"}, "2.1"),
    ],
)
async def test_a_microversion_is_negotiated_by_novas_rules(api: Api, headers: dict[str, str], used: str) -> None:
    answer = await api.http.get("/v2.1/servers", headers={"X-Auth-Token": api.tokens["member"], **headers})
    assert answer.headers["OpenStack-API-Version"] == f"compute {used}"
    assert answer.headers["X-OpenStack-Nova-API-Version"] == used
    assert {"OpenStack-API-Version", "X-OpenStack-Nova-API-Version"} <= set(answer.headers["Vary"].split(", "))


@pytest.mark.parametrize(("asked", "status", "key"), [
    ("2.88", 406, "computeFault"), ("3.0", 406, "computeFault"), ("2.0", 406, "computeFault"),
    ("2.01", 400, "badRequest"), ("two", 400, "badRequest"),
])  # fmt: skip
async def test_a_microversion_that_is_not_served_is_refused(api: Api, asked: str, status: int, key: str) -> None:
    answer = await api.ask("GET", "/v2.1/servers", version=asked)
    assert error_of(answer)[:2] == (status, key)


async def test_every_answer_has_a_request_id_errors_included(api: Api) -> None:
    for path in ("/v2.1/servers", "/v2.1/nothing", "/v2.1/servers/nothing", "/nothing", "/healthz"):
        answer = await api.ask("GET", path)
        assert answer.headers["x-openstack-request-id"].startswith("req-")
        assert answer.headers["x-compute-request-id"] == answer.headers["x-openstack-request-id"]
