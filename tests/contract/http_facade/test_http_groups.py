"""Server groups, aggregates, availability zones."""

from typing import Any
from uuid import uuid4

import pytest

from .api import Api, error_of, new_server

GROUPS = "/v2.1/os-server-groups"
AGGREGATES = "/v2.1/os-aggregates"


async def a_group(api: Api, policy: str = "anti-affinity", **more: Any) -> dict[str, Any]:
    body = {"server_group": {"name": "web", "policy": policy, **more}}
    answer = await api.ask("POST", GROUPS, body, version="2.64")
    assert answer.status_code == 200, answer.text
    group: dict[str, Any] = answer.json()["server_group"]
    return group


async def test_a_group_reads_as_its_version_wants_it(api: Api) -> None:
    group = await a_group(api, rules={"max_server_per_host": "3"})
    assert group == {
        "id": group["id"], "name": "web", "members": [], "project_id": api.project, "user_id": "id-member",
        "policy": "anti-affinity", "rules": {"max_server_per_host": 3},
    }  # fmt: skip
    old = (await api.ask("GET", f"{GROUPS}/{group['id']}", version="2.12")).json()["server_group"]
    assert old == {
        "id": group["id"], "name": "web", "members": [], "policies": ["anti-affinity"], "metadata": {},
    }  # fmt: skip
    made = await api.ask("POST", GROUPS, {"server_group": {"name": "old", "policies": ["affinity"]}})
    assert made.json()["server_group"]["policies"] == ["affinity"]


async def test_groups_belong_to_their_project(api: Api) -> None:
    group = await a_group(api)
    at = f"{GROUPS}/{group['id']}"
    assert (await api.ask("GET", at, who="stranger")).status_code == 404
    assert (await api.ask("GET", GROUPS, who="stranger")).json()["server_groups"] == []
    assert (await api.ask("GET", f"{GROUPS}?all_projects=True", who="stranger")).json()["server_groups"] == []
    everyones = (await api.ask("GET", f"{GROUPS}?all_projects=True", who="admin")).json()["server_groups"]
    assert group["id"] in [one["id"] for one in everyones]
    assert [one["id"] for one in (await api.ask("GET", f"{GROUPS}?limit=1")).json()["server_groups"]] == [group["id"]]
    assert (await api.ask("DELETE", at, who="reader")).status_code == 403
    assert (await api.ask("DELETE", at)).status_code == 204
    assert (await api.ask("DELETE", at)).status_code == 404


@pytest.mark.parametrize(
    ("fields", "version", "says"),
    [
        ({}, "2.64", "'policy' is a required property"),
        ({}, "2.1", "'policies' is a required property"),
        ({"policy": "affinity"}, "2.63", "'policy' was unexpected"),
        ({"policies": ["affinity"]}, "2.64", "'policies' was unexpected"),
        ({"policies": ["affinity", "anti-affinity"]}, "2.1", "policies"),
        ({"policies": ["soft-affinity"]}, "2.14", "soft-affinity"),
        ({"policy": "near"}, "2.64", "policy"),
        ({"policy": "affinity", "rules": {"max_server_per_host": 2}}, "2.64", "Only anti-affinity"),
        ({"policy": "anti-affinity", "rules": {"max_server_per_host": 0}}, "2.64", "max_server_per_host"),
    ],
)
async def test_a_group_that_is_not_sound_is_refused(api: Api, fields: Any, version: str, says: str) -> None:
    body = {"server_group": {"name": "web", **fields}}
    status, _, message = error_of(await api.ask("POST", GROUPS, body, version=version))
    assert status == 400
    assert says in message


async def test_a_server_joins_the_group_that_its_hint_names(api: Api) -> None:
    group = await a_group(api)
    for hint in (group["id"], [group["id"]]):
        body = new_server(api) | {"os:scheduler_hints": {"group": hint}}
        made = (await api.ask("POST", "/v2.1/servers", body)).json()["server"]
        shown = (await api.ask("GET", f"/v2.1/servers/{made['id']}", version="2.71")).json()["server"]
        assert shown["server_groups"] == [group["id"]]
        stored = await api.store.instances.get(made["id"])
        assert stored is not None
        assert stored.hints == {"group": group["id"]}
    members = (await api.ask("GET", f"{GROUPS}/{group['id']}")).json()["server_group"]["members"]
    assert len(members) == 2
    await api.ask("DELETE", f"/v2.1/servers/{members[0]}")
    assert (await api.ask("GET", GROUPS)).json()["server_groups"][0]["members"] == members[1:]


async def test_a_hint_of_an_unknown_group_creates_nothing(api: Api) -> None:
    strangers = await api.ask(
        "POST", GROUPS, {"server_group": {"name": "theirs", "policies": ["affinity"]}}, who="stranger"
    )
    for hint in ("nothing", 7, ["a", "b"], strangers.json()["server_group"]["id"]):
        body = new_server(api) | {"os:scheduler_hints": {"group": hint}}
        status, _, message = error_of(await api.ask("POST", "/v2.1/servers", body))
        assert (status, message) == (400, f"Instance group {hint} could not be found.")
    assert (await api.ask("GET", "/v2.1/servers")).json()["servers"] == []


# Aggregates


async def an_aggregate(api: Api, zone: str | None = None) -> dict[str, Any]:
    body = {"aggregate": {"name": uuid4().hex, "availability_zone": zone}}
    answer = await api.ask("POST", AGGREGATES, body, who="admin", version="2.41")
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()["aggregate"]
    return made


async def act(api: Api, aggregate: dict[str, Any], body: Any) -> Any:
    return await api.ask("POST", f"{AGGREGATES}/{aggregate['id']}/action", body, who="admin")


async def test_an_aggregate_is_made_changed_and_deleted(api: Api) -> None:
    made = await an_aggregate(api, "east")
    at = f"{AGGREGATES}/{made['id']}"
    assert (made["availability_zone"], made["deleted"], "uuid" in made) == ("east", False, True)
    listed = (await api.ask("GET", AGGREGATES, who="admin")).json()["aggregates"]
    assert made["id"] in [one["id"] for one in listed]
    again = await api.ask("POST", AGGREGATES, {"aggregate": {"name": made["name"]}}, who="admin")
    assert error_of(again)[:2] == (409, "conflictingRequest")
    renamed = (await api.ask("PUT", at, {"aggregate": {"name": f"{made['name']}-2"}}, who="admin")).json()
    assert renamed["aggregate"]["name"] == f"{made['name']}-2"
    changed = (await act(api, made, {"set_metadata": {"metadata": {"ssd.fast": "true", "x": "1"}}})).json()
    assert changed["aggregate"]["metadata"] == {"availability_zone": "east", "ssd.fast": "true", "x": "1"}
    changed = (await act(api, made, {"set_metadata": {"metadata": {"x": None}}})).json()["aggregate"]
    assert changed["metadata"] == {"availability_zone": "east", "ssd.fast": "true"}
    assert (await api.ask("GET", at)).status_code == 403
    assert (await api.ask("DELETE", at, who="admin")).status_code == 200
    assert (await api.ask("GET", at, who="admin")).status_code == 404
    assert (await api.ask("GET", f"{AGGREGATES}/name", who="admin")).status_code == 404


async def test_hosts_come_and_go(api: Api) -> None:
    made = await an_aggregate(api)
    added = (await act(api, made, {"add_host": {"host": api.host}})).json()["aggregate"]
    assert added["hosts"] == [api.host]
    assert (await act(api, made, {"add_host": {"host": api.host}})).status_code == 409
    assert (await act(api, made, {"add_host": {"host": "nowhere"}})).status_code == 404
    assert (await api.ask("DELETE", f"{AGGREGATES}/{made['id']}", who="admin")).status_code == 400
    assert (await act(api, made, {"remove_host": {"host": api.host}})).json()["aggregate"]["hosts"] == []
    assert (await act(api, made, {"remove_host": {"host": api.host}})).status_code == 404
    for body in ({}, {"explode": {}}, {"add_host": None}, {"add_host": {}}):
        assert (await act(api, made, body)).status_code == 400


async def zones_of(api: Api) -> list[str]:
    listed = (await api.ask("GET", "/v2.1/os-availability-zone/detail", who="admin")).json()["availabilityZoneInfo"]
    return [zone["zoneName"] for zone in listed if api.host in zone["hosts"]]


async def test_an_aggregate_with_a_zone_puts_its_hosts_into_it(api: Api) -> None:
    east, west = await an_aggregate(api, "east"), await an_aggregate(api, "west")
    assert await zones_of(api) == ["nova"]
    await act(api, east, {"add_host": {"host": api.host}})
    assert await zones_of(api) == ["east"]
    services = (await api.ask("GET", f"/v2.1/os-services?host={api.host}", who="admin")).json()["services"]
    assert services[0]["zone"] == "east"
    listed = (await api.ask("GET", "/v2.1/os-availability-zone")).json()["availabilityZoneInfo"]
    assert {"zoneName": "east", "zoneState": {"available": True}, "hosts": None} in listed
    refused = await act(api, west, {"add_host": {"host": api.host}})
    assert refused.status_code == 409
    assert "it is in availability zone east already" in error_of(refused)[2]
    plain = await an_aggregate(api)
    assert (await act(api, plain, {"add_host": {"host": api.host}})).status_code == 200
    into_west = {"set_metadata": {"metadata": {"availability_zone": "west"}}}
    assert (await act(api, plain, into_west)).status_code == 400
    assert (await act(api, east, into_west)).json()["aggregate"]["availability_zone"] == "west"
    assert await zones_of(api) == ["west"]


async def test_a_host_with_servers_keeps_its_zone(api: Api) -> None:
    await api.instance()
    east = await an_aggregate(api, "east")
    refused = await act(api, east, {"add_host": {"host": api.host}})
    assert refused.status_code == 409
    assert "it has servers" in error_of(refused)[2]
    same = await an_aggregate(api, "nova")
    assert (await act(api, same, {"add_host": {"host": api.host}})).status_code == 200
