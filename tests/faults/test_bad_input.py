"""Bad input gets a clear error and changes nothing, whichever way it comes in."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.exceptions import AMQPException
from virtfleet_common.bus import COMMANDS, EVENTS, read_event
from virtfleet_common.client import FleetClient
from virtfleet_common.dead_letters import DeadLetters, Letter
from virtfleet_common.errors import NotFound, Unauthorized
from virtfleet_common.messages import RebootInstance
from virtfleet_common.states import VmState
from virtfleet_local.fleet import DATABASE_NAME
from yarl import URL

from tests.faults.mixture import crowd_of
from tests.witness import record_is_true
from tests.world import World, polling

pytestmark = pytest.mark.fleet
NOBODY = "00000000-0000-4000-8000-00000000dead"
KEPT = ("instances", "actions", "volumes", "flavors", "images", "tokens", "amqp_users")


@asynccontextmanager
async def nothing_changes(world: World) -> AsyncIterator[None]:
    """What the fleet has on record is the same afterwards, to the letter."""
    before = await asyncio.to_thread(_record, world)
    yield
    assert await asyncio.to_thread(_record, world) == before


def _record(world: World) -> Mapping[str, Any]:
    with world.fleet.connect() as client:
        database = client[DATABASE_NAME]
        kept = {name: list(database[name].find({}, {"outbox": 0, "action.sent_at": 0}).sort("_id")) for name in KEPT}
        return kept | {"claims": list(database["hosts"].find({}, {"allocations": 1, "free": 1}).sort("_id"))}


# Over HTTP. `{id}` is an active instance of `member`.

SERVER, ACT = "/v2.1/servers/{id}", "/v2.1/servers/{id}/action"
NEW = {"name": "new", "flavorRef": "1", "networks": "none"}
VOLUMES = SERVER + "/os-volume_attachments"
BAD_REQUESTS = [
    ("POST", "/v2.1/servers", b'{"server": ', 400, "badRequest", "not JSON"),
    ("POST", "/v2.1/servers", b'"server"', 400, "badRequest", "not a JSON object"),
    ("POST", "/v2.1/servers", {}, 400, "badRequest", "server"),
    ("POST", "/v2.1/servers", {"server": {**NEW, "name": 5}}, 400, "badRequest", "name"),
    ("POST", "/v2.1/servers", {"server": {**NEW, "name": ""}}, 400, "badRequest", "name"),
    ("POST", "/v2.1/servers", {"server": {**NEW, "flavorRef": "99"}}, 400, "badRequest", "Flavor 99"),
    ("POST", "/v2.1/servers", {"server": {**NEW, "imageRef": NOBODY}}, 400, "badRequest", f"Image {NOBODY}"),
    ("POST", "/v2.1/servers", {"server": {**NEW, "max_count": "many"}}, 400, "badRequest", "max_count"),
    ("POST", "/v2.1/servers", {"server": {**NEW, "min_count": 3, "max_count": 2}}, 400, "badRequest", "min_count"),
    ("POST", "/v2.1/servers", {"server": {**NEW, "color": "red"}}, 400, "badRequest", "color"),
    ("POST", ACT, b"{", 400, "badRequest", "not JSON"),
    ("POST", ACT, {"fly": {}}, 400, "badRequest", "There is no such action: fly"),
    ("POST", ACT, {"reboot": 5}, 400, "badRequest", "reboot"),
    ("POST", ACT, {"reboot": {"type": "WARM"}}, 400, "badRequest", "WARM"),
    ("POST", ACT, {"reboot": {"type": "HARD"}, "os-stop": None}, 400, "badRequest", "exactly one action"),
    ("POST", ACT, {"os-start": None}, 409, "conflictingRequest", "while it is in vm_state active"),
    ("GET", f"/v2.1/servers/{NOBODY}", None, 404, "itemNotFound", NOBODY),
    ("DELETE", "/v2.1/servers/not-an-id", None, 404, "itemNotFound", "not-an-id"),
    ("POST", f"/v2.1/servers/{NOBODY}/action", {"os-stop": None}, 404, "itemNotFound", NOBODY),
    ("POST", VOLUMES, {"volumeAttachment": {"volumeId": NOBODY}}, 404, "itemNotFound", f"Volume {NOBODY}"),
    ("POST", VOLUMES, {"volumeAttachment": {"volumeId": "data"}}, 400, "badRequest", "volumeId"),
    ("POST", VOLUMES, {"volumeAttachment": {}}, 400, "badRequest", "'volumeId' is a required property"),
    ("DELETE", f"{VOLUMES}/{NOBODY}", None, 404, "itemNotFound", f"not attached to volume {NOBODY}"),
    ("GET", "/v2.1/servers?limit=-1", None, 400, "badRequest", "limit"),
    ("GET", "/v2.1/servers?limit=lots", None, 400, "badRequest", "limit"),
    ("GET", f"/v2.1/servers?marker={NOBODY}", None, 400, "badRequest", f"marker [{NOBODY}] not found"),
    ("GET", "/v2.1/nowhere", None, 404, "itemNotFound", ""),
    ("PUT", ACT, {}, 405, "badMethod", ""),
]  # fmt: skip


async def test_a_bad_request_is_refused_clearly_and_changes_nothing(simulation: World) -> None:
    (id_,) = await crowd_of(simulation, 1)
    for method, path, body, status, name, says in BAD_REQUESTS:
        content = {"content": body} if isinstance(body, bytes) else {"body": body}
        async with nothing_changes(simulation):
            answer = await simulation.ask(method, path.format(id=id_), **content)
        ((key, error),) = answer.json().items()
        assert (answer.status_code, key, error["code"]) == (status, name, status), (method, path, body)
        assert says in error["message"], (method, path, body)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", SERVER, None),
        ("DELETE", SERVER, None),
        ("POST", ACT, {"os-stop": None}),
        ("GET", f"{SERVER}/os-instance-actions", None),
    ],
)
async def test_another_projects_instance_is_not_there(simulation: World, method: str, path: str, body: Any) -> None:
    (id_,) = await crowd_of(simulation, 1)
    async with nothing_changes(simulation):
        answer = await simulation.ask(method, path.format(id=id_), body, who="other")
    assert (answer.status_code, list(answer.json())) == (404, ["itemNotFound"])


async def test_nobody_is_told_who_does_not_say_who_they_are(simulation: World) -> None:
    for headers in ({}, {"X-Auth-Token": "guessed"}, {"Authorization": "Bearer guessed"}):
        answer = await simulation.ask("GET", "/v2.1/servers", who="", headers=headers)
        assert answer.status_code == 401


async def test_a_page_is_never_larger_than_the_largest(simulation: World) -> None:
    answer = await simulation.ask("GET", "/v2.1/servers?limit=1000000000")
    assert answer.status_code == 200


@pytest.mark.parametrize("vcpus", [0, -1, "none", 0.5])
async def test_a_flavor_without_processors_is_refused(simulation: World, vcpus: Any) -> None:
    async with nothing_changes(simulation):
        body = {"flavor": {"name": "hollow", "ram": 64, "disk": 1, "vcpus": vcpus}}
        answer = await simulation.ask("POST", "/v2.1/flavors", body, who="admin")
    assert answer.status_code == 400
    assert "vcpus" in answer.json()["badRequest"]["message"]


# Over AMQP.


class Program:
    """A program that knows no better than to publish what it likes."""

    def __init__(self, connection: Any, channel: Any, replies: Any, user: str) -> None:
        self.connection, self.channel, self.replies, self.user = connection, channel, replies, user

    async def publish(self, exchange: str, key: str, body: bytes, **properties: Any) -> str:
        """Publish and wait for the confirm; returns the message id."""
        given = {"message_id": uuid4().hex, "reply_to": self.replies.name, "user_id": self.user, **properties}
        message = aio_pika.Message(body, content_type="application/json", **given)
        await (await self.channel.get_exchange(exchange, ensure=False)).publish(message, key)
        return str(given["message_id"])

    async def answer(self) -> Mapping[str, Any]:
        """The next answer."""
        async for _ in polling("an answer"):
            reply = await self.replies.get(fail=False, no_ack=True)
            if reply is not None:
                data: Mapping[str, Any] = read_event(reply.headers, reply.content_type, reply.body).get_data()
                return data
        raise AssertionError


@pytest.fixture
async def program(simulation: World) -> AsyncIterator[Program]:
    """A program of `member`."""
    url = simulation.fleet.file.member_amqp_url
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        yield Program(connection, channel, await channel.declare_queue(exclusive=True), URL(url).user or "")


def ce(kind: str = "virtfleet.instance.reboot") -> dict[str, str]:
    """The headers of a CloudEvent."""
    return {"ce-id": uuid4().hex, "ce-source": "test", "ce-type": kind, "ce-specversion": "1.0"}


async def letter(world: World, id_: str) -> Letter:
    """A message, once it lies in the dead-letter queue."""
    async for _ in polling("the dead letter"):
        for found in await DeadLetters(world.fleet.file.amqp_url).read():
            if found.id == id_:
                return found
    raise AssertionError


@pytest.mark.parametrize(
    ("key", "headers", "data", "reason"),
    [
        ("instance.reboot", {}, {"instance_id": NOBODY}, "not a CloudEvent in binary mode"),
        ("instance.reboot", {"ce-id": "1"}, {"instance_id": NOBODY}, "not a CloudEvent in binary mode"),
        ("instance.reboot", ce(), b"{", "data is not a RebootInstance"),
        ("instance.reboot", ce(), [], "data is not a RebootInstance"),
        ("instance.reboot", ce(), {}, "instance_id: Field required"),
        ("instance.reboot", ce(), {"instance_id": 5}, "instance_id: Input should be a valid string"),
        ("instance.reboot", ce(), {"instance_id": NOBODY, "type": "WARM"}, "type: Input should be 'SOFT' or 'HARD'"),
        ("instance.reboot", ce(), {"instance_id": NOBODY, "now": True}, "now: Extra inputs are not permitted"),
        ("instance.create", ce(), {"name": "x", "flavor": "1", "max_count": 0}, "max_count: Input should be greater"),
        ("instance.fly", ce(), {"instance_id": NOBODY}, "There is no such command: instance.fly"),
        ("instance.reboot.now", ce(), {"instance_id": NOBODY}, "There is no such command: instance.reboot.now"),
    ],
)
async def test_what_is_no_command_is_answered_and_kept_with_the_reason(
    simulation: World, program: Program, key: str, headers: dict[str, str], data: Any, reason: str
) -> None:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    async with nothing_changes(simulation):
        id_ = await program.publish(COMMANDS, key, body, headers=headers)
        answer = await program.answer()
        kept = await letter(simulation, id_)
    assert (answer["code"], answer["rule"]) == ("bad_message", "valid_command")
    assert reason in answer["message"]
    assert (kept.key, kept.body) == (key, body.decode())
    assert reason in kept.reason


async def test_a_bad_command_that_wants_no_answer_is_kept_all_the_same(simulation: World, program: Program) -> None:
    id_ = await program.publish(COMMANDS, "instance.fly", b"{}", headers=ce(), reply_to=None)
    assert "There is no such command" in (await letter(simulation, id_)).reason


@pytest.mark.parametrize("whose", ["nobody", "other"])
async def test_a_command_about_an_instance_that_is_not_there_is_refused(simulation: World, whose: str) -> None:
    (id_,) = await crowd_of(simulation, 1) if whose == "other" else (NOBODY,)
    url = simulation.fleet.file.other_member_amqp_url
    async with FleetClient(url) as other, nothing_changes(simulation):
        with pytest.raises(NotFound) as refused:
            await other.command(RebootInstance(instance_id=id_, type="HARD"))
    assert (refused.value.code, refused.value.rule) == ("not_found", "instance_exists")


async def test_a_command_without_a_sender_is_refused(simulation: World, program: Program) -> None:
    (id_,) = await crowd_of(simulation, 1)
    body = json.dumps({"instance_id": id_, "type": "HARD"}).encode()
    async with nothing_changes(simulation):
        await program.publish(COMMANDS, "instance.reboot", body, headers=ce(), user_id=None)
        answer = await program.answer()
    assert (answer["code"], answer["rule"]) == ("unauthorized", "user_id")


async def test_a_broker_user_who_speaks_for_nobody_is_refused(simulation: World) -> None:
    known = await simulation.store.amqp_users.get("other")
    assert known is not None
    await simulation.store.amqp_users.delete("other")
    try:
        async with FleetClient(simulation.fleet.file.other_member_amqp_url) as other:
            async for _ in polling("the api to hear of it", every=0.5):
                with pytest.raises((NotFound, Unauthorized)) as refused:
                    await other.command(RebootInstance(instance_id=NOBODY))
                if refused.value.rule == "user_known":
                    break
    finally:
        await simulation.store.amqp_users.add(known)


@pytest.mark.parametrize(
    ("exchange", "key"),
    [(COMMANDS, "scheduler.select"), (COMMANDS, "compute.host-1.reboot_hard"), (COMMANDS, "console.host-1"),
     (EVENTS, "host.host-1.heartbeat"), (EVENTS, "instance.reboot.end.x")],
)  # fmt: skip
async def test_a_program_may_not_speak_as_a_service(
    simulation: World, program: Program, exchange: str, key: str
) -> None:
    async with nothing_changes(simulation):
        with pytest.raises(AMQPException, match="ACCESS_REFUSED"):
            await program.publish(exchange, key, b"{}", headers=ce())


async def test_a_program_may_not_send_as_somebody_else(simulation: World, program: Program) -> None:
    (id_,) = await crowd_of(simulation, 1)
    body = json.dumps({"instance_id": id_, "type": "HARD"}).encode()
    async with nothing_changes(simulation):
        with pytest.raises(AMQPException, match="user_id"):
            await program.publish(COMMANDS, "instance.reboot", body, headers=ce(), user_id="other")


# On the way to a guest.


@pytest.mark.qemu
async def test_an_image_that_is_not_what_its_checksum_says_becomes_no_guest(pair: World) -> None:
    tiny = (await pair.store.images.find({"name": "tiny"}))[0]
    body = {"name": "forged", "location": tiny.location, "checksum": "sha256:" + "0" * 64, "disk_format": "qcow2"}
    image = (await pair.ask("POST", "/v2/images", body, who="admin")).json()
    new = {"name": "victim", "flavorRef": "1", "imageRef": image["id"], "networks": "none"}
    answer = await pair.ask("POST", "/v2.1/servers", {"server": new}, headers={"OpenStack-API-Version": "compute 2.37"})
    assert answer.status_code == 202, answer.text
    record = await pair.action(answer.headers["x-openstack-request-id"])
    tried = [event.host for event in sorted(record.events.values(), key=lambda event: str(event.start))]
    assert (record.result, sorted(filter(None, tried))) == ("Error", ["host-1", "host-2"])
    assert "is not what its checksum says" in (record.message or "")
    instance = await pair.instance(answer.json()["server"]["id"])
    assert (instance.vm_state, instance.fault and instance.fault.code) == (VmState.ERROR, "image_fault")
    assert not list(pair.fleet.data.glob(f"hosts/*/instances/{instance.id}"))
    assert not list(pair.fleet.data.glob(f"hosts/*/images/*{'0' * 64}*"))
    assert not pair.guests(instance.id)
    await record_is_true(pair)
    for host in pair.fleet.file.hosts:
        assert not (await pair.host(host)).allocations
