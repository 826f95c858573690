"""Volumes over HTTP: registered and looked up as with Cinder, attached and detached as with Nova."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.records import Instance
from virtfleet_common.records.volume import Attachment, Volume
from virtfleet_common.relay import Relay
from virtfleet_common.states import TaskState, VmState
from virtfleet_common.store import Expect
from virtfleet_common.volumes import device_of

from .api import Api, Deaf, error_of

FILE = {"type": "file", "path": "/srv/volumes/a", "format": "raw"}
RBD = {
    "type": "rbd", "pool": "vms", "image": "a", "hosts": [{"name": "mon1", "port": 6789}], "user": "vf",
    "secret_uuid": "6f1f3e55-5d5c-4a53-9d3b-7b9f6f6c2a10",
}  # fmt: skip


def new_volume(**fields: Any) -> dict[str, Any]:
    return {"volume": {"name": "data", "size": 1, "virtfleet:source": FILE, **fields}}


async def a_volume(api: Api, **fields: Any) -> dict[str, Any]:
    """A volume of the test's project, registered by an admin."""
    made = await api.ask("POST", f"/volume/v3/{api.project}/volumes", new_volume(**fields), who="admin")
    assert made.status_code == 202, made.text
    shape: dict[str, Any] = made.json()["volume"]
    return shape


async def attach(api: Api, server: Instance, volume_id: str, who: str = "member", **more: Any) -> Any:
    body = {"volumeAttachment": {"volumeId": volume_id, **more}}
    return await api.ask("POST", f"/v2.1/servers/{server.id}/os-volume_attachments", body, who=who)


async def has_volume(api: Api, volume_id: str, **fields: Any) -> Instance:
    """A server that has a volume, in the record and in the collection."""
    volume = await api.store.volumes.get(volume_id)
    assert volume is not None
    device = {**device_of(volume, "att-" + volume_id, "vdb"), "attached_at": datetime.now(UTC).isoformat()}
    server = await api.instance(block_devices=[device], **fields)
    held = Attachment(
        id=device["attachment_id"], instance_id=server.id, host=server.host, device="vdb",
        reserved_at=datetime.now(UTC), attached_at=datetime.now(UTC), rank=1,
    )  # fmt: skip
    assert await api.store.volumes.claim(volume_id, held)
    return server


async def stored(api: Api, volume_id: str) -> Volume:
    found = await api.store.volumes.get(volume_id)
    assert found is not None
    return found


# The Block Storage API


@pytest.mark.parametrize("prefix", ["/volume/v3", "/v3"])
async def test_an_admin_registers_a_volume_and_its_project_sees_it(api: Api, prefix: str) -> None:
    body = new_volume(**{"virtfleet:source": RBD, "virtfleet:readonly": True})
    made = await api.ask("POST", f"{prefix}/{api.project}/volumes", body, who="admin")
    shape = made.json()["volume"]
    assert (made.status_code, shape["status"], shape["size"]) == (202, "available", 1)
    assert shape["virtfleet:source"] == RBD
    path = f"{prefix}/{api.project}/volumes"
    shown = (await api.ask("GET", f"{path}/{shape['id']}", who="reader")).json()["volume"]
    assert (shown["name"], shown["metadata"], shown["attachments"]) == ("data", {"readonly": "True"}, [])
    assert "virtfleet:source" not in shown
    assert [one["id"] for one in (await api.ask("GET", path)).json()["volumes"]] == [shape["id"]]
    details = (await api.ask("GET", path + "/detail?status=in-use")).json()
    assert details == {"volumes": []}


async def test_a_volume_is_its_projects_alone(api: Api) -> None:
    volume = await a_volume(api)
    path = f"/volume/v3/{api.project}/volumes"
    for url in (path, f"{path}/{volume['id']}"):
        assert (await api.ask("GET", url, who="stranger")).status_code == 404
    other = await api.ask("GET", f"/volume/v3/{api.project}/volumes?all_tenants=1")
    assert other.status_code == 403
    everyones = (await api.ask("GET", path + "?all_tenants=1&limit=100", who="admin")).json()["volumes"]
    assert volume["id"] in [one["id"] for one in everyones]


async def test_members_register_nothing_and_delete_nothing(api: Api) -> None:
    volume = await a_volume(api)
    path = f"/volume/v3/{api.project}/volumes"
    assert (await api.ask("POST", path, new_volume())).status_code == 403
    assert (await api.ask("DELETE", f"{path}/{volume['id']}")).status_code == 403


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"virtfleet:source": {"type": "nfs"}}, "virtfleet:source"),
        ({"virtfleet:source": {"type": "file", "path": "relative"}}, "path"),
        ({"virtfleet:source": {"type": "file"}}, "path"),
        ({"virtfleet:source": {**FILE, "size": 3}}, "size"),
        ({"virtfleet:source": {**RBD, "secret_uuid": None}}, "go together"),
        ({"virtfleet:source": None}, "virtfleet:source"),
        ({"size": 0}, "size"),
        ({"multiattach": True}, "multiattach"),
    ],
)
async def test_a_volume_that_is_not_sound_is_refused(api: Api, fields: dict[str, Any], names: str) -> None:
    refused = await api.ask("POST", f"/volume/v3/{api.project}/volumes", new_volume(**fields), who="admin")
    status, key, message = error_of(refused)
    assert (status, key) == (400, "badRequest")
    assert names in message


async def test_only_a_free_volume_is_deleted(api: Api) -> None:
    volume = await a_volume(api)
    server = await has_volume(api, volume["id"])
    path = f"/volume/v3/{api.project}/volumes/{volume['id']}"
    shown = (await api.ask("GET", path, who="admin")).json()["volume"]
    (attachment,) = shown["attachments"]
    assert (shown["status"], attachment["server_id"], attachment["device"]) == ("in-use", server.id, "/dev/vdb")
    assert attachment["host_name"] == server.host
    refused = await api.ask("DELETE", path, who="admin")
    assert (refused.status_code, refused.headers["x-virtfleet-rule"]) == (400, "volume_available")
    await api.store.volumes.release_all(server.id)
    assert (await api.ask("DELETE", path, who="admin")).status_code == 202
    assert (await api.ask("GET", path)).status_code == 404


async def test_the_versions_and_the_catalogue_lead_to_the_volumes(api: Api) -> None:
    assert (await api.ask("GET", "/volume", who="")).status_code == 300
    (version,) = (await api.ask("GET", "/volume/v3/", who="")).json()["versions"]
    assert version["id"] == "v3.0"
    catalog = (await api.ask("GET", "/identity/v3/auth/catalog")).json()["catalog"]
    urls = {one["type"]: one["endpoints"][0]["url"] for one in catalog}
    assert urls["volumev3"] == urls["block-storage"] == f"http://fleet.example/volume/v3/{api.project}"


async def test_nothing_is_limited_and_what_is_there_is_counted(api: Api) -> None:
    await a_volume(api, size=3)
    base = f"/volume/v3/{api.project}"
    quota = (await api.ask("GET", f"{base}/os-quota-sets/{api.project}")).json()["quota_set"]
    assert (quota["id"], quota["volumes"]) == (api.project, -1)
    used = (await api.ask("GET", f"{base}/os-quota-sets/{api.project}?usage=True")).json()["quota_set"]
    assert used["gigabytes"] == {"limit": -1, "in_use": 3, "reserved": 0}
    limits = (await api.ask("GET", f"{base}/limits")).json()["limits"]["absolute"]
    assert (limits["maxTotalVolumes"], limits["totalVolumesUsed"], limits["totalGigabytesUsed"]) == (-1, 1, 3)
    assert (await api.ask("GET", f"{base}/snapshots/detail")).json() == {"snapshots": []}
    assert (await api.ask("GET", f"{base}/os-quota-sets/{uuid4().hex}?usage=True")).status_code == 403


# Nova's volume attachments


async def test_an_attach_claims_the_volume_and_sends_the_step(api: Api) -> None:
    server, volume = await api.instance(), await a_volume(api)
    answer = await attach(api, server, volume["id"], device=None)
    assert answer.status_code == 200
    shape = {"id": volume["id"], "volumeId": volume["id"], "serverId": server.id, "device": "/dev/vdb"}
    assert answer.json() == {"volumeAttachment": shape}
    begun = await api.store.instances.get(server.id)
    assert begun is not None
    assert begun.action is not None
    assert (begun.task_state, begun.action.step.name) == (TaskState.BLOCK_DEVICE_MAPPING, "attach_volume")
    assert answer.headers["x-openstack-request-id"] == begun.action.id
    claimed = (await stored(api, volume["id"])).attachment
    assert claimed is not None
    assert (claimed.instance_id, claimed.attached_at) == (server.id, None)


async def test_what_a_server_has_is_listed_by_microversion(api: Api) -> None:
    volume = await a_volume(api)
    server = await has_volume(api, volume["id"])
    path = f"/v2.1/servers/{server.id}/os-volume_attachments"
    oldest = {"id": volume["id"], "volumeId": volume["id"], "serverId": server.id, "device": "/dev/vdb"}
    expected = {"2.1": oldest, "2.70": {**oldest, "tag": None}}
    expected["2.79"] = {**expected["2.70"], "delete_on_termination": False}
    for version, shape in expected.items():
        assert (await api.ask("GET", path, version=version)).json() == {"volumeAttachments": [shape]}
        shown = await api.ask("GET", f"{path}/{volume['id']}", version=version)
        assert shown.json() == {"volumeAttachment": shape}
    assert (await api.ask("GET", path + "?limit=0")).json() == {"volumeAttachments": []}
    detail = (await api.ask("GET", f"/v2.1/servers/{server.id}", version="2.3")).json()["server"]
    assert detail["os-extended-volumes:volumes_attached"] == [{"id": volume["id"], "delete_on_termination": False}]


async def test_of_two_servers_that_want_a_volume_at_once_one_gets_it(api: Api) -> None:
    volume = await a_volume(api)
    servers = [await api.instance() for _ in range(6)]
    answers = await asyncio.gather(*(attach(api, server, volume["id"]) for server in servers))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409, 409, 409]
    winner = servers[[answer.status_code for answer in answers].index(200)]
    claimed = (await stored(api, volume["id"])).attachment
    assert claimed is not None
    assert claimed.instance_id == winner.id
    for server in servers:
        found = await api.store.instances.get(server.id)
        assert found is not None
        assert (found.task_state is None) is (server is not winner)


async def test_a_volume_in_use_is_not_attached_again(api: Api) -> None:
    volume = await a_volume(api)
    holder = await has_volume(api, volume["id"])
    for server in (holder, await api.instance()):
        refused = await attach(api, server, volume["id"])
        assert error_of(refused)[:2] == (400, "badRequest")
        assert refused.headers["x-virtfleet-rule"] == "volume_available"


async def test_a_volume_that_is_not_there_or_anothers_is_not_found(api: Api) -> None:
    server, strangers = await api.instance(), await api.instance(project_id=uuid4().hex)
    volume = await a_volume(api)
    assert (await attach(api, server, str(uuid4()))).status_code == 404
    assert (await attach(api, strangers, volume["id"])).status_code == 404
    assert (await attach(api, strangers, volume["id"], who="admin")).status_code == 404
    assert (await attach(api, server, "data")).status_code == 400
    assert (await attach(api, server, volume["id"], who="reader")).status_code == 403
    assert (await stored(api, volume["id"])).status == "available"


@pytest.mark.parametrize(("device", "status"), [("/dev/vdb", 200), ("vdc", 200), ("/dev/sda", 400), ("vda", 409)])
async def test_a_device_name_may_be_asked_for(api: Api, device: str, status: int) -> None:
    server, volume = await api.instance(), await a_volume(api)
    answer = await attach(api, server, volume["id"], device=device)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["volumeAttachment"]["device"] == "/dev/" + device.removeprefix("/dev/")
    else:
        assert (await stored(api, volume["id"])).status == "available"


@pytest.mark.parametrize(
    "state", [{"vm_state": VmState.SUSPENDED}, {"task_state": TaskState.PAUSING}, {"locked_by": "admin"}]
)
async def test_a_server_in_the_wrong_state_gets_no_volume(api: Api, state: dict[str, Any]) -> None:
    server, volume = await api.instance(**state), await a_volume(api)
    assert (await attach(api, server, volume["id"])).status_code == 409
    assert (await stored(api, volume["id"])).status == "available"


async def test_a_detach_sends_the_step_and_needs_the_volume_to_be_there(api: Api) -> None:
    volume = await a_volume(api)
    server = await has_volume(api, volume["id"])
    path = f"/v2.1/servers/{server.id}/os-volume_attachments"
    for url in (f"{path}/{uuid4()}", f"/v2.1/servers/{(await api.instance()).id}/os-volume_attachments/{volume['id']}"):
        assert (await api.ask("DELETE", url)).status_code == 404
        assert (await api.ask("GET", url)).status_code == 404
    assert (await api.ask("DELETE", f"{path}/{volume['id']}")).status_code == 202
    begun = await api.store.instances.get(server.id)
    assert begun is not None
    assert begun.action is not None
    assert (begun.action.name, begun.action.step.args["device"]["id"]) == ("detach_volume", volume["id"])
    assert (await stored(api, volume["id"])).status == "in-use", "until the guest has let go of it"


# What an api that died has left


async def a_claim_left_behind(api: Api, volume_id: str, server: Instance, age: float) -> None:
    left = Attachment(
        id=str(uuid4()), instance_id=server.id, host=server.host, device="vdb", ticket="left",
        reserved_at=datetime.now(UTC) - timedelta(seconds=age),
    )  # fmt: skip
    assert await api.store.volumes.claim(volume_id, left)


async def test_a_claim_that_was_left_behind_goes_to_the_next_who_asks(api: Api) -> None:
    volume, dead, server = await a_volume(api), await api.instance(), await api.instance()
    await a_claim_left_behind(api, volume["id"], dead, age=60)
    assert (await attach(api, server, volume["id"])).status_code == 200
    fenced = await api.store.instances.get(dead.id)
    assert fenced is not None
    assert fenced.rev > dead.rev, "what was made up before can commit no more"


async def test_a_volume_with_a_claim_that_was_left_behind_can_be_deleted(api: Api) -> None:
    volume, dead = await a_volume(api), await api.instance()
    await a_claim_left_behind(api, volume["id"], dead, age=60)
    path = f"/volume/v3/{api.project}/volumes/{volume['id']}"
    assert (await api.ask("GET", path)).json()["volume"]["status"] == "attaching"
    assert (await api.ask("DELETE", path, who="admin")).status_code == 202


async def test_a_claim_that_is_young_or_borne_out_stays(api: Api) -> None:
    young, borne_out = await a_volume(api), await a_volume(api)
    dead, server = await api.instance(), await api.instance()
    await a_claim_left_behind(api, young["id"], dead, age=0)
    await a_claim_left_behind(api, borne_out["id"], dead, age=60)
    claimed = (await stored(api, borne_out["id"])).attachment
    assert claimed is not None
    device = device_of(await stored(api, borne_out["id"]), claimed.id, "vdb")
    await Relay(api.store, Deaf(), "test").commit(dead.id, expect=Expect(), set={"block_devices": [device]})
    for volume in (young, borne_out):
        assert (await attach(api, server, volume["id"])).status_code == 409


async def test_a_deleted_server_without_a_host_gives_its_volumes_back(api: Api) -> None:
    volume = await a_volume(api)
    server = await has_volume(api, volume["id"], host=None, vm_state=VmState.ERROR)
    assert (await api.ask("DELETE", f"/v2.1/servers/{server.id}")).status_code == 204
    assert (await stored(api, volume["id"])).status == "available"


async def test_an_attach_that_an_admin_resets_keeps_the_volume_once_it_has_begun(api: Api) -> None:
    for claimed_by, status in (("boot", "in-use"), (None, "available")):
        server, volume = await api.instance(), await a_volume(api)
        await attach(api, server, volume["id"])
        await api.store.instances.transition(server.id, expect=Expect(), action={"claimed_by": claimed_by})
        assert (await api.act(server, {"os-resetState": {"state": "active"}}, who="admin")).status_code == 202
        found = await api.store.instances.get(server.id)
        assert found is not None
        assert [device["id"] for device in found.block_devices] == ([volume["id"]] if claimed_by else [])
        assert (await stored(api, volume["id"])).status == status
