"""Hosts as admins lose, attest, take back and remove them; and evacuation, as far as the facade has a say."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_api.accept import Acceptor
from virtfleet_api.intake import Intake, queue
from virtfleet_common.bus import COMMANDS, Delivery, Outgoing, QueueSpec
from virtfleet_common.clock import SystemClock
from virtfleet_common.memory_bus import MemoryBus
from virtfleet_common.messages import EvacuateInstance
from virtfleet_common.records import EVACUATION, AmqpUser, Cleanup, FenceProof, Host, Instance, Move, Resources
from virtfleet_common.relay import Relay
from virtfleet_common.settings import ApiSettings
from virtfleet_common.states import HostState, TaskState, VmState
from virtfleet_common.store import Expect
from virtfleet_common.store.hosts import as_lost

from .api import Api, error_of

SERVICES = "/v2.1/os-services"


async def the_host(api: Api) -> Host:
    found = await api.store.hosts.get(api.host)
    assert found is not None
    return found


async def put(api: Api, body: Any, version: str = "2.53") -> Any:
    return await api.ask("PUT", f"{SERVICES}/{(await the_host(api)).uuid}", body, who="admin", version=version)


async def delete(api: Api, who: str = "admin") -> Any:
    return await api.ask("DELETE", f"{SERVICES}/{(await the_host(api)).uuid}", who=who, version="2.53")


async def a_lost_host(api: Api, **fields: Any) -> None:
    await api.store.hosts.set_fields(api.host, {**as_lost(datetime.now(UTC)), **fields})


async def another_host(api: Api) -> str:
    name, room = f"host-{uuid4().hex[:8]}", Resources(vcpus=8, ram_mb=1024, disk_gb=10)
    await api.store.hosts.register(name, uuid=str(uuid4()), limits=room, facts={"boot_id": "b"})
    return name


async def an_evacuation(api: Api, guest: Instance, status: str, destination: str = "elsewhere") -> str:
    """An evacuation from the host, in the history."""
    id_, now = str(uuid4()), datetime.now(UTC)
    fields = {
        "number": int(id_[:6], 16), "instance_id": guest.id, "project_id": guest.project_id, "user_id": "u",
        "type": EVACUATION, "status": status, "source": api.host, "destination": destination, "old_flavor_id": "1",
        "new_flavor_id": "1", "created_at": now, "updated_at": now,
    }  # fmt: skip
    await api.store.migrations.put(id_, fields, 40)
    return id_


async def owed(api: Api, guest: Instance, migration: str | None = None) -> str:
    """Something that the host has to clean up."""
    id_ = str(uuid4())
    cleanup = Cleanup(id=id_, host=api.host, instance_id=guest.id, migration_id=migration, created_at=datetime.now(UTC))
    await api.store.cleanups.add(cleanup)
    return id_


# Forced down, and back


async def test_a_host_that_is_forced_down_is_lost_at_once(api: Api) -> None:
    guest = await api.instance()
    assert (await put(api, {"forced_down": True})).json()["service"]["state"] == "down"
    host = await the_host(api)
    assert (host.state, host.boot_id, host.fence) == (HostState.DOWN, None, None)
    shown = (await api.ask("GET", f"/v2.1/servers/{guest.id}", who="admin", version="2.16")).json()["server"]
    assert shown["host_status"] == "DOWN"
    (hypervisor,) = (
        await api.ask(
            "GET", f"/v2.1/os-hypervisors?hypervisor_hostname_pattern={api.host}", who="admin", version="2.53"
        )
    ).json()["hypervisors"]
    assert hypervisor["state"] == "down"


async def test_a_guest_of_a_host_forced_down_a_moment_ago_is_deleted_from_the_record(api: Api) -> None:
    guest, other = await api.instance(), await api.instance()
    assert (await api.act(other, {"reboot": {"type": "HARD"}})).status_code == 202  # the host was just seen up
    await put(api, {"forced_down": True})
    assert (await api.ask("DELETE", f"/v2.1/servers/{guest.id}")).status_code == 204
    gone = await api.store.instances.get(guest.id)
    assert gone is not None
    assert gone.vm_state is VmState.DELETED


async def test_forcing_down_a_host_that_is_proven_to_be_off_takes_nothing_back(api: Api) -> None:
    proof = FenceProof(proof="command", at=datetime.now(UTC))
    await a_lost_host(api, fence=proof.model_dump())
    before = await the_host(api)
    await put(api, {"forced_down": True})
    after = await the_host(api)
    assert after == before.model_copy(update={"is_forced_down": True})


@pytest.mark.parametrize("is_open", [True, False])
async def test_a_host_is_not_taken_back_while_what_was_evacuated_from_it_is_not_settled(
    api: Api, is_open: bool
) -> None:
    await put(api, {"forced_down": True})
    if is_open:
        move = Move(id="m", type=EVACUATION, source=api.host, source_claim=None, old_vm_state=VmState.ACTIVE)
        guest = await api.instance(move=move)
        migration = await an_evacuation(api, guest, "accepted")
    else:
        guest = await api.instance(host="elsewhere")
        migration = await an_evacuation(api, guest, "done")
    status, _, message = error_of(await put(api, {"forced_down": False, "status": "disabled"}))
    assert status == 400
    assert message.startswith(f"Unable to force up host {api.host}: 1 evacuations from it are not completed.")
    host = await the_host(api)
    assert (host.is_forced_down, host.is_enabled) == (True, True)
    assert (
        await api.ask(
            "PUT", f"{SERVICES}/force-down", {"host": api.host, "forced_down": False}, who="admin", version="2.11"
        )
    ).status_code == 400
    if not is_open:
        await api.store.migrations.put(migration, {"status": "completed"}, 60)
        assert (await put(api, {"forced_down": False})).json()["service"]["forced_down"] is False


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"status": "enabled", "disabled_reason": "why"}, 400),
        ({"disabled_reason": "why"}, 400),
        ({"status": "off"}, 400),
        ({"forced_down": "perhaps"}, 400),
        ({"status": "disabled", "disabled_reason": "disk", "forced_down": False}, 200),
    ],
)
async def test_a_change_of_a_service_is_sound_or_refused(api: Api, body: Any, status: int) -> None:
    assert (await put(api, body)).status_code == status


async def test_the_switches_of_old_say_what_they_need(api: Api) -> None:
    for name, version, more, status in [
        ("disable-log-reason", "2.1", {}, 400),
        ("disable-log-reason", "2.1", {"disabled_reason": "disk"}, 200),
        ("force-down", "2.10", {"forced_down": True}, 404),
        ("force-down", "2.11", {}, 400),
        ("force-down", "2.11", {"forced_down": True}, 200),
        ("enable", "2.1", {"host": "nowhere"}, 404),
        ("enable", "2.1", {"binary": "nova-scheduler"}, 404),
        ("explode", "2.1", {}, 404),
    ]:
        body = {"host": api.host, "binary": "nova-compute", **more}
        answer = await api.ask("PUT", f"{SERVICES}/{name}", body, who="admin", version=version)
        assert answer.status_code == status, (name, more)


async def test_services_are_filtered_by_host_and_binary(api: Api) -> None:
    for query, names in {
        f"host={api.host}": [api.host],
        f"host={api.host}&binary=nova-compute": [api.host],
        f"host={api.host}&binary=nova-scheduler": [],
        "host=nowhere": [],
    }.items():
        listed = (await api.ask("GET", f"{SERVICES}?{query}", who="admin")).json()["services"]
        assert [one["host"] for one in listed] == names
        assert all(isinstance(one["id"], int) and "forced_down" not in one for one in listed)
    assert (await api.ask("GET", f"{SERVICES}?colour=red", who="admin", version="2.75")).status_code == 400


# Removed


async def test_an_empty_host_is_removed_and_leaves_its_aggregates(api: Api) -> None:
    made = await api.store.aggregates.create(f"rack-{api.host}", {})
    assert made is not None
    await api.store.aggregates.add_host(made.id, api.host)
    assert (await delete(api, who="member")).status_code == 403
    answer = await delete(api)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await api.store.hosts.get(api.host) is None
    aggregate = await api.store.aggregates.get(made.id)
    assert aggregate is not None
    assert aggregate.hosts == []


async def test_a_host_that_holds_something_is_not_removed(api: Api) -> None:
    guest = await api.instance()
    assert "hosting instances" in error_of(await delete(api))[2]
    await api.store.instances.transition(guest.id, expect=Expect(), set={"vm_state": VmState.DELETED})
    migration = await an_evacuation(api, guest, "finished")
    assert "in-progress migrations" in error_of(await delete(api))[2]
    await api.store.migrations.put(migration, {"status": "confirmed"}, 60)
    await owed(api, guest)
    status, _, message = error_of(await delete(api))
    assert (status, "1 leftovers" in message) == (409, True)


async def test_what_a_host_that_is_forced_down_owes_is_written_off_with_it(api: Api) -> None:
    guest = await api.instance(host="elsewhere")
    migration = await an_evacuation(api, guest, "done")
    debt = await owed(api, guest, migration)
    await put(api, {"forced_down": True})
    assert (await delete(api)).status_code == 204
    assert await api.store.cleanups.get(debt) is None
    settled = await api.store.migrations.get(migration)
    assert settled is not None
    assert settled.status == "completed"


async def test_a_service_that_nobody_knows_is_not_removed(api: Api) -> None:
    assert (await api.ask("DELETE", f"{SERVICES}/{uuid4()}", who="admin", version="2.53")).status_code == 404
    assert (await api.ask("DELETE", f"{SERVICES}/name", who="admin", version="2.53")).status_code == 400
    assert (await api.ask("DELETE", f"{SERVICES}/name", who="admin")).status_code == 404


# Attested


async def test_an_admin_attests_that_a_lost_host_is_off(api: Api) -> None:
    at, because = f"/fencing/{api.host}", {"reason": "pulled the plug"}
    assert (await api.ask("POST", f"{at}/attest", because)).status_code == 403
    status, _, message = error_of(await api.ask("POST", f"{at}/attest", because, who="admin"))
    assert (status, message) == (409, f"Host {api.host} is up, not down. Force it down first.")
    await a_lost_host(api)
    assert error_of(await api.ask("POST", f"{at}/attest", {}, who="admin"))[0] == 400
    attested = (await api.ask("POST", f"{at}/attest", because, who="admin")).json()["host"]
    assert (attested["fence"]["proof"], attested["fence"]["detail"]) == ("attested", "id-admin: pulled the plug")
    again = await api.ask("POST", f"{at}/attest", {"reason": "really"}, who="admin")
    assert again.json()["host"]["fence"]["detail"] == "id-admin: pulled the plug"
    assert (await api.ask("POST", "/fencing/nowhere/attest", because, who="admin")).status_code == 404


async def test_an_admin_sees_why_a_lost_host_is_not_fenced(api: Api) -> None:
    now = datetime.now(UTC)
    lost = as_lost(now)
    fencing = {
        "lost_at": lost["lost_at"], "attempts": 2, "by": None, "until": now, "error": "not seen off", "output": "on",
    }  # fmt: skip
    await a_lost_host(api, **lost, fencing=fencing)
    listed = (await api.ask("GET", "/fencing", who="admin")).json()["hosts"]
    (mine,) = [one for one in listed if one["host"] == api.host]
    assert (mine["state"], mine["fence"], mine["attempts"]["error"]) == ("down", None, "not seen off")
    assert (await api.ask("GET", f"/fencing/{api.host}", who="admin")).json()["host"] == mine
    assert (await api.ask("GET", "/fencing/nowhere", who="admin")).status_code == 404
    assert (await api.ask("GET", "/fencing")).status_code == 403


# What people see of a host at a server


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "UP"),
        ({"state": HostState.UNKNOWN}, "UNKNOWN"),
        ({"state": HostState.DOWN}, "DOWN"),
        ({"state": HostState.DOWN, "is_enabled": False}, "DOWN"),
        ({"is_enabled": False}, "MAINTENANCE"),
    ],
)
async def test_the_status_of_a_servers_host_is_its_real_state(api: Api, fields: dict[str, Any], status: str) -> None:
    guest = await api.instance()
    await api.store.hosts.set_fields(api.host, fields)
    shown = await api.ask("GET", f"/v2.1/servers/{guest.id}", who="admin", version="2.16")
    assert shown.json()["server"]["host_status"] == status
    assert "host_status" not in (await api.ask("GET", f"/v2.1/servers/{guest.id}", version="2.16")).json()["server"]


# Evacuation


@pytest.mark.parametrize(
    ("version", "body", "answered"),
    [
        ("2.1", {"onSharedStorage": False, "adminPass": "x"}, b'{"adminPass":"x"}'),
        ("2.13", {"onSharedStorage": True}, b'{"adminPass":""}'),
        ("2.14", {}, b""),
        ("2.14", None, b""),
        ("2.68", {"adminPass": "x"}, b""),
    ],
)
async def test_a_guest_of_a_lost_host_is_evacuated(api: Api, version: str, body: Any, answered: bytes) -> None:
    guest = await api.instance(locked_by="owner", vm_state=VmState.ERROR)
    await a_lost_host(api)
    answer = await api.act(guest, {"evacuate": body}, who="admin", version=version)
    assert (answer.status_code, answer.content) == (200, answered)
    stored = await api.store.instances.get(guest.id)
    assert stored is not None
    assert (stored.vm_state, stored.task_state) == (VmState.ERROR, TaskState.REBUILDING)
    query = f"/v2.1/os-migrations?instance_uuid={guest.id}"
    (migration,) = (await api.ask("GET", query, who="admin", version="2.23")).json()["migrations"]
    assert (migration["migration_type"], migration["status"]) == ("evacuation", "accepted")
    assert (migration["source_compute"], migration["dest_compute"]) == (api.host, None)


async def test_an_evacuation_that_an_admin_resets_keeps_nobody_out_and_can_be_tried_again(api: Api) -> None:
    guest = await api.instance()
    await a_lost_host(api)
    for _ in range(2):
        assert (await api.act(guest, {"evacuate": {}}, who="admin", version="2.14")).status_code == 200
        assert len(await api.store.instances.find_evacuating(api.host)) == 1
        assert (await api.act(guest, {"os-resetState": {"state": "error"}}, who="admin")).status_code == 202
        assert await api.store.instances.find_evacuating(api.host) == []
    stored = await api.store.instances.get(guest.id)
    assert stored is not None
    assert (stored.host, stored.vm_state, stored.task_state, stored.action) == (api.host, VmState.ERROR, None, None)


@pytest.mark.parametrize(
    ("version", "body", "says"),
    [
        ("2.13", {}, "'onSharedStorage' is a required property"),
        ("2.1", None, "'onSharedStorage' is a required property"),
        ("2.14", {"onSharedStorage": True}, "'onSharedStorage' was unexpected"),
        ("2.13", {"onSharedStorage": True, "adminPass": "x"}, "admin password can't be changed on existing disk"),
        ("2.28", {"force": True}, "'force' was unexpected"),
        ("2.29", {"force": True}, "Can't force to a non-provided destination"),
        ("2.68", {"force": True}, "'force' was unexpected"),
        ("2.14", {"host": ""}, "host"),
    ],
)
async def test_an_evacuation_that_is_not_sound_is_refused(api: Api, version: str, body: Any, says: str) -> None:
    guest = await api.instance()
    await a_lost_host(api)
    status, _, message = error_of(await api.act(guest, {"evacuate": body}, who="admin", version=version))
    assert (status, says in message) == (400, True), message
    assert await api.store.instances.get(guest.id) == guest


async def test_an_evacuation_is_checked_in_novas_order(api: Api) -> None:
    other, unknown, forced = await another_host(api), {"host": "nowhere"}, {"force": True}
    guest = await api.instance(vm_state=VmState.RESCUED)

    async def refused(body: Any, who: str = "admin") -> tuple[int, str]:
        status, _, message = error_of(await api.act(guest, {"evacuate": body}, who=who, version="2.29"))
        return status, message.partition(".")[0]

    assert (await refused({"colour": "red"}, who="stranger"))[0] == 400
    assert (await refused(unknown, who="stranger"))[0] == 404
    assert (await refused(forced, who="member"))[0] == 403
    assert (await refused(forced))[0] == 400
    assert await refused(unknown) == (404, "Compute host nowhere could not be found")
    assert (await refused({"host": api.host}))[0] == 400
    assert (await refused({"host": other}))[0] == 409
    await api.store.instances.transition(guest.id, expect=Expect(), set={"vm_state": VmState.STOPPED})
    in_use = (400, f"Compute service of {api.host} is still in use")
    assert await refused({"host": other}) == in_use
    await api.store.hosts.set_fields(api.host, {"state": HostState.UNKNOWN})
    assert await refused({}) == in_use
    await a_lost_host(api)
    assert (await api.act(guest, {"evacuate": {"host": other}}, who="admin", version="2.29")).status_code == 200
    assert (await refused({}))[0] == 409


async def test_a_program_evacuates_if_it_speaks_for_an_admin(api: Api) -> None:
    guest = await api.instance()
    await a_lost_host(api)
    bus, clock, settings = MemoryBus(), SystemClock(), ApiSettings()
    acceptor = Acceptor(api.store, Relay(api.store, bus, "virtfleet/api"), clock, settings)
    answers: asyncio.Queue[str] = asyncio.Queue()

    async def hear(delivery: Delivery) -> None:
        answers.put_nowait(delivery.event.get_type())
        await delivery.settler.ack()

    replies = QueueSpec("replies", [], is_durable=False)
    async with (
        bus.consume(queue(settings), Intake(api.store, bus, acceptor, clock).take),
        bus.consume(replies, hear),
    ):
        for role, answered in (("member", "rejected"), ("admin", "accepted")):
            name = f"{role}-{api.project}"
            await api.store.amqp_users.add(AmqpUser(id=name, user_id=role, project_id=api.project, roles=[role]))
            order = EvacuateInstance(instance_id=guest.id)
            key, answer_to = "instance.evacuate", {"user_id": name, "reply_to": "replies"}
            await bus.publish(Outgoing(COMMANDS, key, f"virtfleet.{key}", order, "test", **answer_to))
            assert await asyncio.wait_for(answers.get(), 10) == f"virtfleet.command.{answered}"
    stored = await api.store.instances.get(guest.id)
    assert stored is not None
    assert stored.task_state is TaskState.REBUILDING


async def test_the_history_tells_evacuations_by_their_status(api: Api) -> None:
    guest = await api.instance()
    for status in ("accepted", "pre-migrating", "done", "completed", "error"):
        migration = await an_evacuation(api, guest, status)
        query = f"/v2.1/os-migrations?instance_uuid={guest.id}&status={status}&migration_type=evacuation"
        (shown,) = (await api.ask("GET", query, who="admin", version="2.59")).json()["migrations"]
        assert (shown["uuid"], shown["status"], shown["dest_compute"]) == (migration, status, "elsewhere")
