"""Quotas and limits: what is refused, what is counted, and what is shown."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from virtfleet_api.accept import Acceptor
from virtfleet_api.create import CreateRequest
from virtfleet_api.identity import Identity
from virtfleet_common import failpoints
from virtfleet_common.clock import SystemClock
from virtfleet_common.quota_audit import QuotaAudit
from virtfleet_common.records import Flavor
from virtfleet_common.relay import Relay
from virtfleet_common.settings import ApiSettings
from virtfleet_common.states import HostState
from virtfleet_common.store import Store

from .api import Api, Deaf, error_of, new_server


async def limit(api: Api, **limits: int) -> None:
    answer = await api.ask("PUT", f"/v2.1/os-quota-sets/{api.project}", {"quota_set": limits}, who="admin")
    assert answer.status_code == 200, answer.text


async def usage(api: Api) -> tuple[int, int, int]:
    """Instances, cores and RAM that the project uses."""
    shown = (await api.ask("GET", "/v2.1/limits?reserved=False")).json()["limits"]["absolute"]
    return shown["totalInstancesUsed"], shown["totalCoresUsed"], shown["totalRAMUsed"]


async def test_limits_show_what_a_project_uses(api: Api) -> None:
    await api.instance()
    await api.instance()
    await limit(api, instances=7)
    shown = (await api.ask("GET", "/v2.1/limits")).json()["limits"]["absolute"]
    assert (shown["maxTotalInstances"], shown["maxTotalCores"]) == (7, -1)
    assert await usage(api) == (2, 2, 128)
    assert (await api.ask("GET", "/v2.1/limits?tenant_id=other")).status_code == 403
    assert (await api.ask("GET", f"/v2.1/limits?tenant_id={api.project}", who="admin")).status_code == 200


async def test_a_quota_is_set_by_admins_and_shown_to_its_project(api: Api) -> None:
    at = f"/v2.1/os-quota-sets/{api.project}"
    assert (await api.ask("PUT", at, {"quota_set": {"cores": 4}})).status_code == 403
    changed = (await api.ask("PUT", at, {"quota_set": {"cores": "4", "ram": 4096}}, who="admin")).json()["quota_set"]
    assert (changed["cores"], changed["ram"], changed["instances"], "id" in changed) == (4, 4096, -1, False)
    shown = (await api.ask("GET", at, version="2.57")).json()["quota_set"]
    assert (shown["id"], shown["cores"], "floating_ips" in shown, "injected_files" in shown) == (
        api.project, 4, False, False,
    )  # fmt: skip
    assert "floating_ips" in (await api.ask("GET", at)).json()["quota_set"]
    assert (await api.ask("GET", f"{at}/defaults")).json()["quota_set"]["cores"] == -1
    await api.instance()
    detail = (await api.ask("GET", f"{at}/detail")).json()["quota_set"]["cores"]
    assert detail == {"limit": 4, "in_use": 1, "reserved": 0}
    assert (await api.ask("DELETE", at, who="admin")).status_code == 202
    assert (await api.ask("GET", at)).json()["quota_set"]["cores"] == -1
    assert (await api.ask("GET", "/v2.1/os-quota-sets/other")).status_code == 403


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"cores": -2}, "cores"),
        ({"cores": "many"}, "cores"),
        ({"networks": 5}, "'networks' was unexpected"),
        ({"instances": 1}, "must be greater than or equal to already used 2"),
    ],
)
async def test_a_quota_that_is_not_sound_is_refused(api: Api, fields: Any, says: str) -> None:
    await api.instance()
    await api.instance()
    body = {"quota_set": fields}
    answer = await api.ask("PUT", f"/v2.1/os-quota-sets/{api.project}", body, who="admin")
    assert says in error_of(answer)[2]
    assert answer.status_code == 400


async def test_force_sets_a_limit_below_what_is_used(api: Api) -> None:
    await api.instance()
    await limit(api, instances=0, force=True)
    assert (await api.ask("POST", "/v2.1/servers", new_server(api))).status_code == 403


async def test_a_create_over_quota_names_kind_limit_used_and_asked(api: Api) -> None:
    await limit(api, ram=100)
    assert (await api.ask("POST", "/v2.1/servers", new_server(api))).status_code == 202
    status, key, message = error_of(await api.ask("POST", "/v2.1/servers", new_server(api)))
    assert (status, key) == (403, "forbidden")
    assert message.startswith("Quota exceeded for ram: Requested 64, but already used 64 of 100 ram")
    assert await usage(api) == (1, 1, 64)


async def test_twenty_creates_at_once_get_the_five_places_that_there_are(api: Api) -> None:
    await limit(api, instances=5)
    answers = await asyncio.gather(*(api.ask("POST", "/v2.1/servers", new_server(api)) for _ in range(20)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(202), statuses.count(403)) == (5, 15)
    assert len((await api.ask("GET", "/v2.1/servers")).json()["servers"]) == 5
    assert await usage(api) == (5, 5, 320)


async def test_as_many_are_created_as_fit_but_not_fewer_than_the_least(api: Api) -> None:
    await limit(api, instances=3)
    body = new_server(api, min_count=4, max_count=9)
    assert (await api.ask("POST", "/v2.1/servers", body)).status_code == 403
    assert (await api.ask("GET", "/v2.1/servers")).json()["servers"] == []
    assert (await api.ask("POST", "/v2.1/servers", new_server(api, min_count=2, max_count=9))).status_code == 202
    listed = (await api.ask("GET", "/v2.1/servers")).json()["servers"]
    assert sorted(server["name"] for server in listed) == ["new-1", "new-2", "new-3"]


async def test_a_deleted_server_makes_room_for_the_next(api: Api) -> None:
    await limit(api, instances=1)
    made = (await api.ask("POST", "/v2.1/servers", new_server(api))).json()["server"]
    assert (await api.ask("POST", "/v2.1/servers", new_server(api))).status_code == 403
    assert (await api.ask("DELETE", f"/v2.1/servers/{made['id']}")).status_code == 204  # no host has it yet
    assert await usage(api) == (0, 0, 0)
    assert (await api.ask("POST", "/v2.1/servers", new_server(api))).status_code == 202


async def test_a_server_deleted_with_its_lost_host_is_no_longer_counted(api: Api, store: Store) -> None:
    guest = await api.instance()
    await store.hosts.set_fields(api.host, {"state": HostState.DOWN})
    assert (await api.ask("DELETE", f"/v2.1/servers/{guest.id}")).status_code == 204
    assert await usage(api) == (0, 0, 0)


async def test_a_create_that_died_half_way_is_taken_back_by_the_audit(
    api: Api, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoints, "_FOLDER", str(tmp_path))
    (tmp_path / "create.reserved").write_text("raise")
    assert (await api.ask("POST", "/v2.1/servers", new_server(api, min_count=2))).status_code == 500
    assert await usage(api) == (2, 2, 128)
    found = await QuotaAudit(store, patience=0).audit(api.project)
    assert len(found.gone) == 2
    assert await usage(api) == (0, 0, 0)


async def test_a_late_copy_of_a_create_counts_nothing(api: Api, store: Store) -> None:
    who, request = Identity("u", api.project, frozenset({"member"})), CreateRequest("twice", api.flavor.id)
    acceptor = Acceptor(store, Relay(store, Deaf(), "test"), SystemClock(), ApiSettings())
    copies = await asyncio.gather(*(acceptor.create(who, request, action_id="req-1") for _ in range(3)))
    assert len({made.id for (made,) in copies}) == 1
    assert await usage(api) == (1, 1, 64)
    assert (await api.ask("DELETE", f"/v2.1/servers/{copies[0][0].id}")).status_code == 204
    await acceptor.create(who, request, action_id="req-1")
    assert await usage(api) == (0, 0, 0)


async def test_a_resize_over_quota_is_refused_and_changes_nothing(api: Api, store: Store) -> None:
    large = Flavor(id=f"large-{api.project}", name=f"large-{api.project}", vcpus=4, ram_mb=64, disk_gb=1)
    await store.flavors.add(large)
    guest = await api.instance()
    await limit(api, cores=3)
    status, _, message = error_of(await api.act(guest, {"resize": {"flavorRef": large.id}}))
    assert status == 403
    assert message.startswith("Quota exceeded for cores: Requested 3, but already used 1 of 3 cores")
    assert await store.instances.get(guest.id) == guest
    await limit(api, cores=4)
    assert (await api.act(guest, {"resize": {"flavorRef": large.id}})).status_code == 202
    assert await usage(api) == (1, 4, 64)
