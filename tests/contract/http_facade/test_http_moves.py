"""Resizes and cold migrations, as far as the facade has a say: the actions' forms, and the history of moves."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common.records import FenceProof, Flavor, Instance, Move, Resources
from virtfleet_common.states import HostState, TaskState, VmState
from virtfleet_common.store import Expect

from .api import Api, error_of

HISTORY = "/v2.1/os-migrations"


@pytest.fixture
async def large(api: Api) -> Flavor:
    """A larger flavor than the usual one."""
    flavor = Flavor(id=uuid4().hex, name=f"large-{uuid4().hex[:6]}", vcpus=2, ram_mb=128, disk_gb=2)
    await api.store.flavors.add(flavor)
    return flavor


async def stored(api: Api, guest: Instance) -> Instance:
    found = await api.store.instances.get(guest.id)
    assert found is not None
    return found


async def test_a_resize_is_shown_as_one_at_once(api: Api, large: Flavor) -> None:
    guest = await api.instance()
    answer = await api.act(guest, {"resize": {"flavorRef": f"http://fleet.example/v2.1/flavors/{large.id}"}})
    assert (answer.status_code, answer.content) == (202, b"")
    shown = (await api.ask("GET", f"/v2.1/servers/{guest.id}")).json()["server"]
    assert (shown["status"], shown["OS-EXT-STS:task_state"], shown["progress"]) == ("RESIZE", "resize_prep", 0)
    assert shown["flavor"]["id"] == api.flavor.id  # until the server has changed hands
    assert (await stored(api, guest)).task_state is TaskState.RESIZE_PREP


@pytest.mark.parametrize(
    ("body", "version", "says"),
    [
        ({"resize": {}}, "2.1", "'flavorRef' is a required property"),
        ({"resize": {"flavorRef": "nothing"}}, "2.1", "Flavor nothing could not be found."),
        ({"resize": {"flavorRef": None}}, "2.1", "flavorRef"),
        ({"resize": {"flavorRef": "1", "host": "x"}}, "2.1", "'host' was unexpected"),
        ({"migrate": {"host": "x"}}, "2.55", "'host' was unexpected"),
        ({"migrate": {"host": "nowhere"}}, "2.56", "nowhere"),
        ({"migrate": "x"}, "2.56", "migrate"),
        ({"confirmResize": {"now": True}}, "2.1", "'now' was unexpected"),
        ({"os-resetState": {"state": "stopped"}}, "2.1", "state"),
    ],
)
async def test_a_move_that_is_not_sound_is_refused(api: Api, body: Any, version: str, says: str) -> None:
    guest = await api.instance()
    status, key, message = error_of(await api.act(guest, body, who="admin", version=version))
    assert (status, key) == (400, "badRequest")
    assert says in message
    assert await stored(api, guest) == guest


async def test_a_resize_to_the_same_flavor_is_refused(api: Api) -> None:
    guest = await api.instance()
    assert (await api.act(guest, {"resize": {"flavorRef": api.flavor.id}})).status_code == 400


@pytest.mark.parametrize(("body", "version"), [({"migrate": None}, "2.1"), ({"migrate": {}}, "2.56")])
async def test_only_admins_migrate(api: Api, body: Any, version: str) -> None:
    guest = await api.instance()
    assert (await api.act(guest, body, version=version)).status_code == 403
    assert (await api.act(guest, body, who="admin", version=version)).status_code == 202
    assert (await api.act(guest, body, who="admin", version=version)).status_code == 409


@pytest.mark.parametrize("action", ["confirmResize", "revertResize"])
async def test_there_is_nothing_to_decide_before_a_resize(api: Api, action: str) -> None:
    guest = await api.instance()
    status, _, message = error_of(await api.act(guest, {action: None}))
    assert status == 409
    assert message == f"Cannot '{action}' instance {guest.id} while it is in vm_state active"


async def test_an_admin_says_what_a_server_is(api: Api) -> None:
    guest = await api.instance(vm_state=VmState.ERROR)
    assert (await api.act(guest, {"os-resetState": {"state": "active"}})).status_code == 403
    assert (await api.act(guest, {"os-resetState": {"state": "active"}}, who="admin")).status_code == 202
    assert (await stored(api, guest)).vm_state is VmState.ACTIVE


async def test_a_resize_that_an_admin_resets_is_over_and_gives_back_what_it_held(api: Api, large: Flavor) -> None:
    guest = await api.instance()
    before = (await api.store.quotas.get(api.project)).used
    for _ in range(2):
        assert (await api.act(guest, {"resize": {"flavorRef": large.id}})).status_code == 202
        assert (await api.store.quotas.get(api.project)).used != before
        assert (await api.act(guest, {"os-resetState": {"state": "active"}}, who="admin")).status_code == 202
        assert (await api.store.quotas.get(api.project)).used == before
    after = await stored(api, guest)
    assert (after.vm_state, after.move, after.new_flavor, after.action) == (VmState.ACTIVE, None, None, None)
    assert [one.status for one in await api.store.migrations.find({"instance_id": guest.id})] == ["error", "error"]


async def test_a_move_that_waits_for_a_decision_still_does_after_a_reset(api: Api) -> None:
    guest = await api.instance(vm_state=VmState.ERROR, move=a_move(api.host))
    assert (await api.act(guest, {"os-resetState": {"state": "active"}}, who="admin")).status_code == 202
    shown = (await api.ask("GET", f"/v2.1/servers/{guest.id}")).json()["server"]
    assert shown["status"] == "VERIFY_RESIZE"
    assert (await api.act(guest, {"confirmResize": None})).status_code == 204
    assert (await stored(api, guest)).vm_state is VmState.ACTIVE


@pytest.mark.parametrize("vm_state", [VmState.ACTIVE, VmState.STOPPED])
async def test_a_move_is_decided_before_another_one_begins(api: Api, large: Flavor, vm_state: VmState) -> None:
    guest = await api.instance(vm_state=vm_state, move=a_move(api.host))
    for body in ({"resize": {"flavorRef": large.id}}, {"migrate": None}):
        status, _, message = error_of(await api.act(guest, body, who="admin"))
        (action,) = body
        assert (status, message) == (
            409, f"Cannot '{action}' instance {guest.id}: its migration has to be confirmed or reverted first.",
        )  # fmt: skip
    assert await stored(api, guest) == guest


async def test_a_revert_that_failed_is_never_followed_by_a_confirm_that_nobody_asked_for(api: Api) -> None:
    due = datetime.now(UTC) - timedelta(seconds=1)
    await api.store.hosts.register("elsewhere", uuid=str(uuid4()), limits=Resources(), facts={})
    guest = await api.instance(vm_state=VmState.RESIZED, move=a_move(api.host, confirm_by=due))
    assert guest.id in {one.id for one in await api.store.instances.find_unconfirmed(datetime.now(UTC), [api.host])}
    assert (await api.act(guest, {"revertResize": None})).status_code == 202
    await api.store.instances.transition(guest.id, expect=Expect(), set={"task_state": None}, end=True)  # it has failed
    assert guest.id not in {one.id for one in await api.store.instances.find_unconfirmed(datetime.now(UTC), [api.host])}
    assert (await api.act(guest, {"confirmResize": None})).status_code == 204


PROOF = FenceProof(proof="silence", at=datetime.now(UTC)).model_dump()


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        ({"state": HostState.UP}, "revert"),
        ({"state": HostState.UNKNOWN}, None),
        ({"state": HostState.DOWN}, None),
        ({"state": HostState.DOWN, "fence": PROOF}, "finish_revert"),
        (None, "finish_revert"),
    ],
    ids=["up", "unknown", "down", "fenced", "gone"],
)
async def test_a_guest_is_not_taken_back_while_its_host_may_still_run_it(
    api: Api, fields: dict[str, Any] | None, step: str | None
) -> None:
    destination = f"host-{uuid4().hex[:8]}"
    moved = {"vm_state": VmState.RESIZED, "host": destination, "move": a_move(destination, source=api.host)}
    guest = await api.instance(**moved)
    if fields is not None:
        await api.store.hosts.register(destination, uuid=str(uuid4()), limits=Resources(), facts={})
        neighbour = await api.instance(host=destination)
        assert (await api.act(neighbour, {"pause": None})).status_code == 202  # a moment ago, the host was up
        await api.store.hosts.set_fields(destination, fields)
    answer = await api.act(guest, {"revertResize": None})
    after = await stored(api, guest)
    if step is None:
        status, _, message = error_of(answer)
        assert (status, f"its host is {fields and fields['state']}, and may still run it" in message) == (409, True)
        assert after == guest
    else:
        assert (answer.status_code, after.host) == (202, destination if step == "revert" else api.host)
        assert after.action is not None
        assert after.action.step.name == step


def a_move(destination: str, **fields: Any) -> Move:
    """A move to this host that has switched."""
    known: dict[str, Any] = {"source": "elsewhere", "source_claim": "c-1", "claim": "c-2", **fields}
    return Move(
        id=str(uuid4()), type="migration", old_vm_state=VmState.ACTIVE, destination=destination, **known,
    )  # fmt: skip


# The history


async def a_migration(api: Api, guest: Instance, **fields: Any) -> str:
    """A move in the history, as its effects write it."""
    id_ = str(uuid4())
    now = fields.pop("at", datetime.now(UTC))
    usual: dict[str, Any] = {
        "number": fields.pop("number", int(id_[:6], 16)), "instance_id": guest.id, "project_id": guest.project_id,
        "user_id": "u", "type": "resize", "status": "finished", "source": api.host, "destination": "elsewhere",
        "old_flavor_id": "1", "new_flavor_id": "2", "created_at": now, "updated_at": now,
    }  # fmt: skip
    await api.store.migrations.put(id_, {**usual, **fields}, 40)
    return id_


async def listed(api: Api, query: str, version: str = "2.80") -> list[str]:
    answer = await api.ask("GET", f"{HISTORY}?{query}", who="admin", version=version)
    assert answer.status_code == 200, answer.text
    return [one["uuid"] for one in answer.json()["migrations"]]


async def test_the_history_is_filtered(api: Api) -> None:
    first, second = await api.instance(), await api.instance()
    at = datetime.now(UTC).replace(microsecond=0)
    resize = await a_migration(api, first, at=at - timedelta(hours=2))
    cold = await a_migration(api, second, type="migration", status="error", source="elsewhere", destination=api.host)
    hour_ago = (at - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    for query, expected in {
        f"host={api.host}": [cold, resize],
        f"host={api.host}&status=error": [cold],
        f"source_compute={api.host}": [resize],
        f"instance_uuid={first.id}": [resize],
        f"host={api.host}&migration_type=migration": [cold],
        f"host={api.host}&changes-since={hour_ago}": [cold],
        f"host={api.host}&changes-before={hour_ago}": [resize],
        f"project_id={api.project}": [cold, resize],
        f"host={api.host}&limit=0": [],
        "instance_uuid=nothing": [],
    }.items():
        assert await listed(api, query) == expected, query
    assert (await api.ask("GET", HISTORY)).status_code == 403


async def test_the_history_has_pages(api: Api) -> None:
    guest = await api.instance()
    start = datetime.now(UTC)
    made = [await a_migration(api, guest, at=start + timedelta(seconds=number)) for number in range(3)]
    url, seen = f"{HISTORY}?instance_uuid={guest.id}&limit=2", []
    while url:
        page = (await api.ask("GET", url, who="admin", version="2.59")).json()
        seen += [one["uuid"] for one in page["migrations"]]
        url = page.get("migrations_links", [{"href": ""}])[0]["href"]
    assert seen == made[::-1]
    for query in ("marker=nothing", "limit=x"):
        assert (await api.ask("GET", f"{HISTORY}?{query}", who="admin", version="2.59")).status_code == 400
    assert (await api.ask("GET", f"{HISTORY}?colour=red", who="admin", version="2.75")).status_code == 400


async def test_a_migration_reads_as_its_version_wants_it(api: Api) -> None:
    guest = await api.instance()
    id_ = await a_migration(api, guest, status="migrating", number=77)
    query = f"{HISTORY}?instance_uuid={guest.id}"
    oldest = (await api.ask("GET", query, who="admin")).json()["migrations"][0]
    assert set(oldest) == {
        "id", "status", "instance_uuid", "source_compute", "source_node", "dest_compute", "dest_node", "dest_host",
        "old_instance_type_id", "new_instance_type_id", "created_at", "updated_at",
    }  # fmt: skip
    assert (oldest["id"], oldest["source_compute"], oldest["dest_compute"]) == (77, api.host, "elsewhere")
    newest = (await api.ask("GET", query, who="admin", version="2.80")).json()["migrations"][0]
    assert (newest["uuid"], newest["migration_type"], newest["project_id"]) == (id_, "resize", api.project)
    assert newest["links"][0]["href"].endswith(f"/v2.1/servers/{guest.id}/migrations/77")


async def test_a_servers_move_under_way_shows_its_progress(api: Api) -> None:
    guest = await api.instance(progress=25)
    await a_migration(api, guest, status="migrating", number=78)
    await a_migration(api, guest, status="confirmed")
    at = f"/v2.1/servers/{guest.id}/migrations"
    assert (await api.ask("GET", at, who="admin", version="2.22")).status_code == 404
    (shown,) = (await api.ask("GET", at, who="admin", version="2.80")).json()["migrations"]
    assert (shown["id"], shown["server_uuid"], shown["status"]) == (78, guest.id, "migrating")
    assert (shown["disk_total_bytes"], shown["disk_processed_bytes"]) == (2**30, 2**28)
    one = await api.ask("GET", f"{at}/78", who="admin", version="2.80")
    assert one.json()["migration"] == shown
    assert (await api.ask("GET", f"{at}/79", who="admin", version="2.80")).status_code == 404
