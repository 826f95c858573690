"""Flavors, images, hosts, limits."""

from uuid import uuid4

import pytest

from .api import CHECKSUM, Api, error_of


async def test_flavors_are_managed_by_admins(api: Api) -> None:
    name = f"flavor {uuid4().hex}"
    body = {"flavor": {"name": name, "ram": 512, "vcpus": "2", "disk": 1, "id": None}}
    assert (await api.ask("POST", "/v2.1/flavors", body)).status_code == 403
    made = (await api.ask("POST", "/v2.1/flavors", body, who="admin", version="2.75")).json()["flavor"]
    assert (made["vcpus"], made["ram"], made["swap"]) == (2, 512, 0)
    assert (await api.ask("POST", "/v2.1/flavors", body, who="admin")).status_code == 409
    assert (await api.ask("GET", f"/v2.1/flavors/{made['id']}")).json()["flavor"]["swap"] == ""
    assert (await api.ask("GET", f"/v2.1/flavors/{name}")).status_code == 404
    assert made["id"] in [flavor["id"] for flavor in (await api.ask("GET", "/v2.1/flavors/detail")).json()["flavors"]]
    assert (await api.ask("DELETE", f"/v2.1/flavors/{made['id']}", who="admin")).status_code == 202
    assert (await api.ask("DELETE", f"/v2.1/flavors/{made['id']}", who="admin")).status_code == 404


async def test_a_flavor_without_vcpus_is_refused(api: Api) -> None:
    for vcpus in (0, -1, "many", 1.5, None):
        body = {"flavor": {"name": uuid4().hex, "ram": 512, "vcpus": vcpus, "disk": 1}}
        status, _, message = error_of(await api.ask("POST", "/v2.1/flavors", body, who="admin"))
        assert status == 400
        assert "vcpus" in message


async def test_images_are_looked_up_and_registered(api: Api) -> None:
    for prefix in ("/v2", "/image/v2"):
        for query in (f"name={api.image.name}", f"id=in:{api.image.id},nothing"):
            found = (await api.ask("GET", f"{prefix}/images?{query}")).json()["images"]
            assert [image["id"] for image in found] == [api.image.id]
        assert (await api.ask("GET", f"{prefix}/images/{api.image.name}")).status_code == 404
    body = {"name": "mine", "disk_format": "raw", "container_format": "bare", "location": "/x", "checksum": CHECKSUM}
    made = await api.ask("POST", "/v2/images", body)
    assert (made.status_code, made.json()["visibility"]) == (201, "private")
    at = f"/v2/images/{made.json()['id']}"
    assert (await api.ask("GET", at, who="stranger")).status_code == 404
    assert (await api.ask("POST", "/v2/images", {**body, "visibility": "public"})).status_code == 403
    assert (await api.ask("POST", "/v2/images", {**body, "checksum": "md5:1"})).status_code == 400
    assert (await api.ask("POST", "/v2/images", {"name": "unsafe", "location": "/x"})).status_code == 400
    assert (await api.ask("DELETE", f"/v2/images/{api.image.id}", who="stranger")).status_code == 403
    assert (await api.ask("DELETE", at)).status_code == 204


async def test_a_host_is_seen_and_switched_by_admins(api: Api) -> None:
    listed = (await api.ask("GET", f"/v2.1/os-services?host={api.host}", who="admin", version="2.53")).json()[
        "services"
    ]
    service = listed[0]
    assert (service["state"], service["status"], service["forced_down"]) == ("up", "enabled", False)
    at = f"/v2.1/os-services/{service['id']}"
    off = {"status": "disabled", "disabled_reason": "disk"}
    disabled = (await api.ask("PUT", at, off, who="admin", version="2.53")).json()["service"]
    assert (disabled["status"], disabled["disabled_reason"]) == ("disabled", "disk")
    down = (await api.ask("PUT", at, {"forced_down": True}, who="admin", version="2.53")).json()["service"]
    assert (down["state"], down["forced_down"]) == ("down", True)
    up = (await api.ask("PUT", at, {"forced_down": False}, who="admin", version="2.53")).json()["service"]
    assert (up["state"], up["forced_down"]) == ("down", False)  # until its agent has put it in order
    enabled = await api.ask(
        "PUT", "/v2.1/os-services/enable", {"host": api.host, "binary": "nova-compute"}, who="admin"
    )
    assert enabled.json()["service"]["status"] == "enabled"
    assert (await api.ask("PUT", at, {"status": "off"}, who="admin", version="2.53")).status_code == 400


async def test_a_hypervisor_is_shown_with_what_is_left(api: Api) -> None:
    listed = (await api.ask("GET", "/v2.1/os-hypervisors/detail", who="admin", version="2.87")).json()["hypervisors"]
    mine = next(one for one in listed if one["service"]["host"] == api.host)
    assert (mine["vcpus"], mine["vcpus_used"], mine["memory_mb"], mine["free_ram_mb"]) == (8, 0, 1024, 1024)
    at = f"/v2.1/os-hypervisors/{mine['id']}"
    assert (await api.ask("GET", at, who="admin", version="2.87")).json()["hypervisor"]["id"] == mine["id"]
    assert "uptime" in (await api.ask("GET", f"{at}/uptime", who="admin", version="2.87")).json()["hypervisor"]
    assert (await api.ask("GET", "/v2.1/os-hypervisors/name", who="admin", version="2.87")).status_code == 400


@pytest.mark.parametrize("path", ["os-keypairs", "os-security-groups", "extensions"])
async def test_what_is_not_there_is_an_empty_list(api: Api, path: str) -> None:
    ((_, listed),) = (await api.ask("GET", f"/v2.1/{path}", who="admin")).json().items()
    assert listed == []
