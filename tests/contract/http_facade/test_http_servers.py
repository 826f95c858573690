"""Servers: views, lists, labels, history."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.records import (
    ActionEvent,
    Fault,
    NetworkPort,
)
from virtfleet_common.states import TaskState, VmState

from .api import Api


async def test_a_server_is_shown_in_the_shape_of_the_version_asked_for(api: Api) -> None:
    guest = await api.instance(tags=["a"], description="d", networks=[NetworkPort(mac="m", network="lan")])

    async def shown(version: str, who: str = "member") -> dict[str, Any]:
        answer = await api.ask("GET", f"/v2.1/servers/{guest.id}", version=version, who=who)
        server: dict[str, Any] = answer.json()["server"]
        return server

    oldest = await shown("2.1")
    assert oldest["flavor"]["id"] == api.flavor.id
    assert not {"locked", "description", "tags", "host_status", "OS-EXT-SRV-ATTR:host"} & set(oldest)
    newest = await shown("2.87")
    assert newest["flavor"]["original_name"] == api.flavor.name
    assert "id" not in newest["flavor"]
    assert (newest["tags"], newest["description"], newest["locked"], newest["server_groups"]) == (["a"], "d", False, [])
    assert newest["OS-EXT-STS:power_state"] == 1
    admins = await shown("2.87", "admin")
    assert (admins["OS-EXT-SRV-ATTR:host"], admins["host_status"]) == (api.host, "UP")
    assert "OS-EXT-SRV-ATTR:host" not in newest


async def test_a_fault_is_shown_where_the_server_is_in_error(api: Api) -> None:
    fault = Fault(code="image_fault", message="No valid host was found.", created=datetime.now(UTC), details="trace")
    broken = await api.instance(vm_state=VmState.ERROR, fault=fault)
    fine = await api.instance(fault=fault)
    shown = (await api.ask("GET", f"/v2.1/servers/{broken.id}")).json()["server"]
    assert (shown["fault"]["code"], shown["fault"]["message"]) == (500, "No valid host was found.")
    assert "details" not in shown["fault"]
    assert "fault" not in (await api.ask("GET", f"/v2.1/servers/{fine.id}")).json()["server"]


async def names(api: Api, query: str, who: str = "member", path: str = "servers") -> list[str]:
    answer = await api.ask("GET", f"/v2.1/{path}?{query}", who=who, version="2.74")
    assert answer.status_code == 200, answer.text
    return sorted(server["name"] for server in answer.json()["servers"])


async def test_lists_are_filtered(api: Api) -> None:
    early = datetime.now(UTC) - timedelta(hours=2)
    await api.instance(name="web-1", tags=["x", "y"])
    await api.instance(name="web-2", task_state=TaskState.REBOOTING_HARD, locked_by="owner")
    await api.instance(name="db-1", vm_state=VmState.STOPPED, created_at=early)
    await api.instance(name="gone", vm_state=VmState.DELETED, deleted_at=datetime.now(UTC))
    await api.instance(name="theirs", project_id=uuid4().hex)
    for query, expected in {
        "": ["db-1", "web-1", "web-2"],
        "deleted=False": ["db-1", "web-1", "web-2"],
        "name=eb-": ["web-1", "web-2"],
        "name=^db": ["db-1"],
        "status=ACTIVE": ["web-1"],
        "status=hard_reboot": ["web-2"],
        "status=SHUTOFF&status=HARD_REBOOT": ["db-1", "web-2"],
        "status=NONSENSE": [],
        "flavor=nothing": [],
        f"flavor={api.flavor.id}&image={api.image.id}": ["db-1", "web-1", "web-2"],
        f"changes-since={(early + timedelta(hours=1)).strftime('%Y-%m-%dT%H:%M:%SZ')}": ["gone", "web-1", "web-2"],
        "tags=x,y": ["web-1"],
        "not-tags=x": ["db-1", "web-2"],
        "locked=true": ["web-2"],
        "vm_state=stopped": ["db-1"],
    }.items():
        assert await names(api, query) == expected, query
        assert await names(api, query, path="servers/detail") == expected, query
    assert await names(api, "deleted=True&all_tenants=1", who="admin") == ["gone"]
    assert await names(api, f"host={api.host}&all_tenants=True&status=SHUTOFF", who="admin") == ["db-1"]
    assert "theirs" in await names(api, "all_tenants=True", who="admin")
    assert await names(api, f"all_tenants=1&project_id={api.project}", who="admin") == ["db-1", "web-1", "web-2"]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("name=(", 400), ("name=(?a:x)", 400), ("name=%00", 400),
        ("limit=-1", 400), ("limit=x", 400), ("marker=nothing", 400), ("changes-since=soon", 400),
        ("all_tenants=1", 403), ("all_tenants=maybe", 400),
    ],
)  # fmt: skip
async def test_a_bad_list_query_is_refused(api: Api, query: str, status: int) -> None:
    assert (await api.ask("GET", f"/v2.1/servers?{query}")).status_code == status


async def test_an_unknown_query_argument_is_ignored_until_2_74(api: Api) -> None:
    assert (await api.ask("GET", "/v2.1/servers?colour=red", version="2.74")).status_code == 200
    assert (await api.ask("GET", "/v2.1/servers?colour=red", version="2.75")).status_code == 400


async def test_pages_follow_one_another_until_all_was_seen(api: Api) -> None:
    for number in range(5):
        await api.instance(name=f"guest-{number}", locked_by="owner" if number % 2 else None)
    for query, expected in [("limit=2", 5), ("limit=1&locked=false", 3)]:
        url, seen = f"/v2.1/servers/detail?{query}", []
        while url:
            page = (await api.ask("GET", url, version="2.73")).json()
            seen += [server["name"] for server in page["servers"]]
            url = page.get("servers_links", [{"href": ""}])[0]["href"]
        assert len(set(seen)) == len(seen) == expected


async def test_a_server_is_renamed_and_labelled(api: Api) -> None:
    guest = await api.instance(metadata={"a": "1", "b": "2"})
    at = f"/v2.1/servers/{guest.id}"
    renamed = (await api.ask("PUT", at, {"server": {"name": "other"}})).json()["server"]
    assert renamed["name"] == "other"
    assert "OS-EXT-STS:vm_state" not in renamed
    assert "OS-EXT-STS:vm_state" in (await api.ask("PUT", at, {"server": {}}, version="2.75")).json()["server"]
    assert (await api.ask("POST", f"{at}/metadata", {"metadata": {"b": "3", "c.d": "4"}})).status_code == 200
    assert (await api.ask("DELETE", f"{at}/metadata/a")).status_code == 204
    assert (await api.ask("DELETE", f"{at}/metadata/a")).status_code == 404
    assert (await api.ask("PUT", f"{at}/metadata/e", {"meta": {"f": "5"}})).status_code == 400
    assert (await api.ask("GET", f"{at}/metadata")).json() == {"metadata": {"b": "3", "c.d": "4"}}
    assert (await api.ask("PUT", f"{at}/tags", {"tags": ["z", "y"]}, version="2.26")).json() == {"tags": ["y", "z"]}
    assert (await api.ask("PUT", f"{at}/tags", {"tags": None}, version="2.26")).json() == {"tags": ["y", "z"]}
    assert (await api.ask("PUT", f"{at}/tags/x", version="2.26")).status_code == 201
    assert (await api.ask("PUT", f"{at}/tags/né 雨", version="2.26")).status_code == 201
    assert (await api.ask("GET", f"{at}/tags", version="2.25")).status_code == 404


async def test_concurrent_labels_are_all_kept(api: Api) -> None:
    guest = await api.instance()
    answers = await asyncio.gather(
        *(api.ask("POST", f"/v2.1/servers/{guest.id}/metadata", {"metadata": {f"k{n}": "v"}}) for n in range(8))
    )
    assert {answer.status_code for answer in answers} == {200}
    stored = await api.store.instances.get(guest.id)
    assert stored is not None
    assert len(stored.metadata) == 8


async def test_a_delete_is_accepted_without_a_body(api: Api) -> None:
    guest = await api.instance()
    answer = await api.ask("DELETE", f"/v2.1/servers/{guest.id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await api.ask("GET", f"/v2.1/servers/{guest.id}")).json()["server"]["OS-EXT-STS:task_state"] == "deleting"


async def test_the_actions_of_a_server_are_told_newest_first(api: Api) -> None:
    guest = await api.instance()
    first = (await api.act(guest, {"lock": None})).headers["x-openstack-request-id"]
    second = (await api.act(guest, {"unlock": None})).headers["x-openstack-request-id"]
    step = ActionEvent(event="compute_x", start=datetime.now(UTC), result="Error", host=api.host, traceback="secret")
    await api.store.actions.put(second, {"events.1": step.model_dump()})
    at = f"/v2.1/servers/{guest.id}/os-instance-actions"
    listed = (await api.ask("GET", at)).json()["instanceActions"]
    assert [action["request_id"] for action in listed] == [second, first]
    assert "updated_at" not in listed[0]
    page = (await api.ask("GET", f"{at}?limit=1", version="2.58")).json()
    assert [action["action"] for action in page["instanceActions"]] == ["unlock"]
    rest = (await api.ask("GET", page["links"][0]["href"], version="2.58")).json()
    assert [action["action"] for action in rest["instanceActions"]] == ["lock"]
    members = (await api.ask("GET", f"{at}/{second}", version="2.84")).json()["instanceAction"]["events"][0]
    assert (members["result"], members["traceback"], "host" in members) == ("Error", None, False)
    admins = (await api.ask("GET", f"{at}/{second}", version="2.84", who="admin")).json()["instanceAction"]["events"][0]
    assert (admins["traceback"], admins["host"]) == ("secret", api.host)
    assert (await api.ask("GET", f"{at}/req-nothing")).status_code == 404
