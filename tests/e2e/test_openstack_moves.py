"""Resizes, cold migrations and evacuations as people ask for them, with the `openstack` command, on a whole fleet of
simulated hosts; and what their project's quota, the history and a dry run of placement say meanwhile."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from virtfleet_local.fleet import LocalFleet

pytestmark = pytest.mark.fleet
_PATIENCE = 90


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two hosts on libvirt's test driver."""
    with LocalFleet(tmp_path_factory.mktemp("moves"), hosts=2, hypervisor="test") as running:
        yield running


@pytest.fixture
def http(fleet: LocalFleet) -> Iterator[httpx.Client]:
    """An admin's requests."""
    headers = {"X-Auth-Token": fleet.file.token, "OpenStack-API-Version": "compute 2.87"}
    with httpx.Client(base_url=fleet.file.api_url, headers=headers, timeout=30) as client:
        yield client


def openstack(fleet: LocalFleet, *words: str) -> str:
    """What the `openstack` command says to an admin."""
    settings = {
        "auth_url": f"{fleet.file.api_url}/identity", "username": "admin", "password": fleet.file.token,
        "project_name": "admin", "user_domain_name": "Default", "project_domain_name": "Default",
    }  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    env |= {f"OS_{name.upper()}": value for name, value in settings.items()}
    program = str(Path(sys.executable).with_name("openstack"))
    said = subprocess.run([program, *words], env=env, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    assert said.returncode == 0, said.stderr
    return said.stdout


def parsed(fleet: LocalFleet, *words: str) -> Any:
    """The same, read from JSON."""
    return json.loads(openstack(fleet, *words, "-f", "json"))


def shown(http: httpx.Client, id_: str) -> Any:
    """A server."""
    return http.get(f"/v2.1/servers/{id_}").json()["server"]


def cores_used(http: httpx.Client) -> int:
    """The vCPUs that count against the quota."""
    used: int = http.get("/v2.1/limits").json()["limits"]["absolute"]["totalCoresUsed"]
    return used


def eventually(look: Callable[[], Any], wanted: Any) -> None:
    """Look until it is as wanted."""
    deadline = time.monotonic() + _PATIENCE
    while (seen := look()) != wanted:
        assert time.monotonic() < deadline, f"it stays {seen}"
        time.sleep(0.2)


def created(http: httpx.Client, name: str) -> str:
    """A small server without an image, active."""
    wanted = {"name": name, "flavorRef": flavor(http, "m1.tiny")["id"], "imageRef": "", "networks": "none"}
    id_: str = http.post("/v2.1/servers", json={"server": wanted}).json()["server"]["id"]
    eventually(lambda: shown(http, id_)["status"], "ACTIVE")
    return id_


def flavor(http: httpx.Client, name: str) -> Any:
    """A flavor by its name."""
    return next(one for one in http.get("/v2.1/flavors/detail").json()["flavors"] if one["name"] == name)


def test_a_resize_is_confirmed_and_counts_once(fleet: LocalFleet, http: httpx.Client) -> None:
    before = cores_used(http)
    id_ = created(http, "grows")
    openstack(fleet, "server", "resize", "--flavor", "m1.medium", "--wait", id_)
    server = shown(http, id_)
    assert (server["status"], server["flavor"]["original_name"]) == ("VERIFY_RESIZE", "m1.medium")
    assert cores_used(http) - before == server["flavor"]["vcpus"]
    (move,) = parsed(fleet, "server", "migration", "list", "--server", id_)
    assert (move["Status"], move["Type"]) == ("finished", "resize")
    assert {move["Source Compute"], move["Dest Compute"]} == set(fleet.file.hosts)
    openstack(fleet, "server", "resize", "confirm", id_)
    assert shown(http, id_)["status"] == "ACTIVE"
    http.delete(f"/v2.1/servers/{id_}")
    eventually(lambda: cores_used(http), before)


def test_a_cold_migration_is_taken_back(fleet: LocalFleet, http: httpx.Client) -> None:
    id_ = created(http, "moves")
    host, used = shown(http, id_)["OS-EXT-SRV-ATTR:host"], cores_used(http)
    openstack(fleet, "server", "migrate", "--wait", id_)
    assert shown(http, id_)["OS-EXT-SRV-ATTR:host"] != host
    openstack(fleet, "server", "resize", "revert", id_)
    eventually(lambda: shown(http, id_)["status"], "ACTIVE")
    assert shown(http, id_)["OS-EXT-SRV-ATTR:host"] == host
    assert cores_used(http) == used
    http.delete(f"/v2.1/servers/{id_}")


def service(http: httpx.Client, host: str) -> Any:
    """The compute service of a host; None if there is none."""
    return next(iter(http.get("/v2.1/os-services", params={"host": host}).json()["services"]), None)


def test_a_server_of_a_lost_host_is_evacuated_and_the_host_comes_back(fleet: LocalFleet, http: httpx.Client) -> None:
    id_ = created(http, "castaway")
    lost = shown(http, id_)["OS-EXT-SRV-ATTR:host"]
    (other,) = set(fleet.file.hosts) - {lost}
    openstack(fleet, "compute", "service", "set", "--down", lost, "nova-compute")
    assert (service(http, lost)["state"], shown(http, id_)["host_status"]) == ("down", "DOWN")
    openstack(fleet, "server", "evacuate", "--host", other, id_)
    eventually(lambda: [shown(http, id_)[name] for name in ("OS-EXT-SRV-ATTR:host", "status")], [other, "ACTIVE"])
    assert http.get(f"/fencing/{lost}").json()["host"]["fence"]["detail"] == "an admin forced it down"
    query = {"instance_uuid": id_, "migration_type": "evacuation"}
    eventually(
        lambda: http.get("/v2.1/os-migrations", params=query).json()["migrations"][0]["status"], "completed"
    )  # its agent, at the door, has cleaned up
    (move,) = parsed(fleet, "server", "migration", "list", "--server", id_, "--type", "evacuation")
    assert (move["Source Compute"], move["Dest Compute"]) == (lost, other)
    openstack(fleet, "compute", "service", "set", "--up", lost, "nova-compute")
    eventually(lambda: service(http, lost)["state"], "up")
    http.delete(f"/v2.1/servers/{id_}")


def test_a_host_that_is_not_needed_any_more_is_deleted(fleet: LocalFleet, http: httpx.Client) -> None:
    host = fleet.file.hosts[0]
    fleet.stop_service(host)
    openstack(fleet, "compute", "service", "delete", service(http, host)["id"])
    assert service(http, host) is None
    fleet.start_service(host)  # it registers anew
    eventually(lambda: (service(http, host) or {}).get("state"), "up")


def test_a_dry_run_says_where_a_server_would_go_and_claims_nothing(fleet: LocalFleet, http: httpx.Client) -> None:
    free = [one["vcpus_used"] for one in http.get("/v2.1/os-hypervisors/detail").json()["hypervisors"]]
    told = http.post("/placement/explain", json={"server": {"flavorRef": "1"}}).json()
    assert told["hosts"][0] in fleet.file.hosts
    assert told["explanations"][0]
    nowhere = http.post("/placement/explain", json={"flavor": "1", "excluded": fleet.file.hosts}).json()
    assert nowhere["hosts"] == [None]
    assert http.post("/placement/explain", json={"flavor": "nothing"}).status_code == 400
    assert [one["vcpus_used"] for one in http.get("/v2.1/os-hypervisors/detail").json()["hypervisors"]] == free
