"""The clients that people have already, openstacksdk and the `openstack` command, against the facade on a real port.

They log in through the small Keystone, with a token in the place of the password. What they act on is put into the
record directly: no host works here, so that an action is seen to be accepted, and not to end.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import openstack
import pytest
import uvicorn
from virtfleet_common.records import ActionEvent, Flavor, Instance, Resources
from virtfleet_common.records.volume import Attachment, BlockSource, Volume
from virtfleet_common.settings import ApiSettings
from virtfleet_common.states import TaskState, VmState
from virtfleet_common.store import Store
from virtfleet_common.volumes import device_of

from tests.contract.http_facade.api import Api

T = TypeVar("T")
_PATIENCE = 60


@pytest.fixture(scope="module")
async def api(mongodb_url: str) -> AsyncIterator[Api]:
    """The application with its users, on a database of its own."""
    store = Store.connect(ApiSettings(mongodb_url=mongodb_url, database=f"e2e_{uuid4().hex[:12]}"))
    await store.prepare()
    api = Api(store)
    await api.set_up()
    yield api
    store.close()


@pytest.fixture(scope="module")
async def url(api: Api) -> AsyncIterator[str]:
    """The application's address, while uvicorn serves it."""
    server = uvicorn.Server(uvicorn.Config(api.app, port=0, log_config=None, lifespan="off"))
    socket = server.config.bind_socket()
    serving = asyncio.create_task(server.serve([socket]))
    yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    await serving


def credentials(api: Api, url: str, role: str) -> dict[str, Any]:
    """What a person would write into clouds.yaml."""
    return {
        "auth_url": f"{url}/identity",
        "username": role,
        "password": api.tokens[role],
        "project_name": f"name-{api.project}",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }


async def sdk(api: Api, url: str, work: Callable[[Any], T], role: str = "admin") -> T:
    """Do some work with the SDK, which blocks, beside the loop that serves it."""
    connection = openstack.connect(**credentials(api, url, role), region_name="RegionOne", load_yaml_config=False)
    return await asyncio.wait_for(asyncio.to_thread(work, connection), _PATIENCE)


async def command(api: Api, url: str, *words: str, role: str = "admin", fails: bool = False) -> str:
    """What the `openstack` command prints; with `fails`, what it complains of."""
    options = {f"OS_{name.upper()}": value for name, value in credentials(api, url, role).items()}
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("openstack")),
        *words,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("OS_")}, **options},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, complaint = await asyncio.wait_for(process.communicate(), _PATIENCE)
    assert (process.returncode != 0) == fails, complaint.decode()
    return (complaint if fails else out).decode()


async def parsed(api: Api, url: str, *words: str, role: str = "admin") -> Any:
    """What the `openstack` command prints as JSON."""
    return json.loads(await command(api, url, *words, "-f", "json", role=role))


async def test_the_sdk_finds_its_way_around(api: Api, url: str) -> None:
    guest = await api.instance(name=f"sdk-{uuid4().hex[:6]}")

    def look(cloud: Any) -> None:
        assert cloud.compute.get_server(guest.id).flavor["original_name"] == api.flavor.name
        assert cloud.compute.find_server(guest.name).id == guest.id
        assert guest.id in [server.id for server in cloud.compute.servers()]
        assert cloud.compute.find_flavor(api.flavor.name).id == api.flavor.id
        assert cloud.image.find_image(api.image.name).id == api.image.id
        assert api.host in [service.host for service in cloud.compute.services()]
        assert api.host in [
            hypervisor.service_details["host"] for hypervisor in cloud.compute.hypervisors(details=True)
        ]
        assert cloud.compute.get_limits().absolute.instances_used >= 1
        assert cloud.compute.get_quota_set(api.project).instances == -1
        assert [zone.name for zone in cloud.compute.availability_zones()] == ["nova"]
        assert list(cloud.compute.migrations()) == []
        assert list(cloud.network.networks()) == []
        assert list(cloud.network.ports(device_id=guest.id)) == []

    await sdk(api, url, look)


async def test_the_sdk_creates_acts_and_deletes(api: Api, url: str) -> None:
    guest = await api.instance()

    def work(cloud: Any) -> str:
        made = cloud.compute.create_server(
            name="made", flavor_id=api.flavor.id, image_id=api.image.id, networks="none", metadata={"a": "b"}
        )
        assert cloud.compute.get_server(made.id).status == "BUILD"
        cloud.compute.set_server_metadata(made, c="d")
        cloud.compute.lock_server(guest.id, locked_reason="careful")
        cloud.compute.unlock_server(guest.id)
        cloud.compute.reboot_server(guest.id, "HARD")
        assert cloud.compute.get_server(guest.id).status == "HARD_REBOOT"
        actions = [action.action for action in cloud.compute.server_actions(guest.id)]
        assert actions == ["reboot", "unlock", "lock"]
        cloud.compute.delete_server(made)
        return str(made.id)

    made = await api.store.instances.get(await sdk(api, url, work, role="member"))
    assert made is not None
    assert dict(made.metadata) == {"a": "b", "c": "d"}
    assert made.vm_state is VmState.DELETED


async def test_the_sdk_reads_a_refusal(api: Api, url: str) -> None:
    guest = await api.instance(vm_state=VmState.STOPPED)

    def work(cloud: Any) -> None:
        with pytest.raises(openstack.exceptions.ConflictException, match="while it is in vm_state stopped"):
            cloud.compute.reboot_server(guest.id, "SOFT")
        with pytest.raises(openstack.exceptions.ForbiddenException):
            list(cloud.compute.services())
        assert cloud.compute.find_server("nobody", ignore_missing=True) is None

    await sdk(api, url, work, role="member")


async def test_the_command_lists_and_shows(api: Api, url: str) -> None:
    guest = await api.instance(name=f"cli-{uuid4().hex[:6]}")
    listed, shown, services, hypervisor = await asyncio.gather(
        parsed(api, url, "server", "list", "--name", guest.name),
        parsed(api, url, "server", "show", guest.name),
        parsed(api, url, "compute", "service", "list"),
        parsed(api, url, "hypervisor", "show", api.host),
    )
    assert [(row["ID"], row["Status"], row["Image"]) for row in listed] == [(guest.id, "ACTIVE", api.image.name)]
    assert (shown["id"], shown["OS-EXT-SRV-ATTR:host"]) == (guest.id, api.host)
    assert api.host in [row["Host"] for row in services]
    assert hypervisor["state"] == "up"


async def test_the_command_creates(api: Api, url: str) -> None:
    image, flavor = ("--image", api.image.name), ("--flavor", api.flavor.name)
    made = await parsed(api, url, "server", "create", *flavor, *image, "--no-network", "fresh", role="member")
    assert made["status"] == "BUILD"


async def test_the_command_reboots_and_tells_what_happened(api: Api, url: str) -> None:
    guest = await api.instance()
    await command(api, url, "server", "reboot", "--hard", guest.id, role="member")
    stored = await api.store.instances.get(guest.id)
    assert stored is not None
    assert stored.action is not None
    now = datetime.now(UTC)
    step = ActionEvent(event="compute_reboot_instance", start=now, finish=now, result="Success", host=api.host)
    await api.store.actions.put(stored.action.id, {"events.1": step.model_dump()})
    listed, shown, console, complaint = await asyncio.gather(
        parsed(api, url, "server", "event", "list", guest.id, role="member"),
        parsed(api, url, "server", "event", "show", guest.id, stored.action.id, role="member"),
        command(api, url, "console", "log", "show", guest.id, role="member"),
        command(api, url, "server", "reboot", guest.id, role="member", fails=True),
    )
    assert [row["Request ID"] for row in listed] == [stored.action.id]
    assert shown["action"] == "reboot"
    assert console == "booting guest\nready\n"
    assert "while it is in task_state rebooting_hard" in complaint


async def test_the_command_manages_flavors_images_limits_and_hosts(api: Api, url: str) -> None:
    guest = await api.instance()
    off = ("compute", "service", "set", "--disable", "--disable-reason", "x", api.host, "nova-compute")
    flavor, image, limits, *_ = await asyncio.gather(
        parsed(api, url, "flavor", "create", "--ram", "64", "--vcpus", "1", "--disk", "1", f"f-{uuid4().hex[:6]}"),
        parsed(api, url, "image", "show", api.image.name),
        parsed(api, url, "limits", "show", "--absolute"),
        command(api, url, "server", "set", "--property", "a=b", "--name", "renamed", guest.id),
        command(api, url, *off),
    )
    assert (await api.store.flavors.get(flavor["id"])) is not None
    assert image["id"] == api.image.id
    assert {row["Name"] for row in limits} & {"instances", "maxTotalInstances"}
    stored, host = await api.store.instances.get(guest.id), await api.store.hosts.get(api.host)
    assert stored is not None
    assert host is not None
    assert (stored.name, dict(stored.metadata)) == ("renamed", {"a": "b"})
    assert (host.is_enabled, host.disabled_reason) == (False, "x")


async def test_the_sdk_groups_limits_and_explains_itself(api: Api, url: str) -> None:
    guest, spare = await api.instance(), await a_spare_host(api)
    await a_migration(api, guest)

    def work(cloud: Any) -> None:
        group = cloud.compute.create_server_group(
            name="apart", policy="anti-affinity", rules={"max_server_per_host": 2}
        )
        assert cloud.compute.find_server_group("apart").rules == {"max_server_per_host": 2}
        assert group.id in [one.id for one in cloud.compute.server_groups()]
        made = cloud.compute.create_server(
            name="member", flavor_id=api.flavor.id, networks="none", scheduler_hints={"group": group.id}
        )
        assert cloud.compute.get_server_group(group.id).member_ids == [made.id]
        aggregate = cloud.compute.create_aggregate(name="fast", availability_zone="east")
        aggregate = cloud.compute.add_host_to_aggregate(aggregate, spare)
        assert (aggregate.hosts, aggregate.availability_zone) == ([spare], "east")
        cloud.compute.remove_host_from_aggregate(aggregate, spare)
        cloud.compute.set_aggregate_metadata(aggregate, {"ssd": "true"})
        cloud.compute.delete_aggregate(aggregate)
        cloud.compute.update_quota_set(api.project, cores=99)
        assert cloud.compute.get_quota_set(api.project, usage=True).cores == 99
        assert cloud.compute.get_quota_set_defaults(api.project).cores == -1
        cloud.compute.revert_quota_set(api.project)
        (move,) = cloud.compute.migrations(instance_uuid=guest.id)
        assert (move.migration_type, move.status, move.source_compute) == ("resize", "migrating", api.host)
        assert [one.status for one in cloud.compute.server_migrations(guest.id)] == ["migrating"]
        cloud.compute.delete_server(made)
        cloud.compute.delete_server_group(group)

    await sdk(api, url, work)


async def a_spare_host(api: Api) -> str:
    """A host without servers."""
    name, room = f"spare-{uuid4().hex[:8]}", Resources(vcpus=8, ram_mb=1024, disk_gb=10)
    await api.store.hosts.register(name, uuid=str(uuid4()), limits=room, facts={"total": room.model_dump()})
    return name


async def a_migration(api: Api, guest: Instance) -> None:
    """A move in the history."""
    now = datetime.now(UTC)
    fields = {
        "number": 7, "instance_id": guest.id, "project_id": guest.project_id, "user_id": "u", "type": "resize",
        "status": "migrating", "source": api.host, "destination": "elsewhere", "old_flavor_id": "1",
        "new_flavor_id": "2", "created_at": now, "updated_at": now,
    }  # fmt: skip
    await api.store.migrations.put(str(uuid4()), fields, 20)


async def test_the_command_groups_limits_and_lists_moves(api: Api, url: str) -> None:
    guest, spare = await api.instance(), await a_spare_host(api)
    await a_migration(api, guest)
    name = f"group-{uuid4().hex[:6]}"
    group, zone, _, moves = await asyncio.gather(
        parsed(api, url, "server", "group", "create", "--policy", "affinity", name, role="member"),
        parsed(api, url, "aggregate", "create", "--zone", "west", f"west-{uuid4().hex[:6]}"),
        command(api, url, "quota", "set", "--instances", "77", api.project),
        parsed(api, url, "server", "migration", "list", "--server", guest.id),
    )
    groups, filled, quota, member = await asyncio.gather(
        parsed(api, url, "server", "group", "list", role="member"),
        parsed(api, url, "aggregate", "add", "host", str(zone["id"]), spare),
        parsed(api, url, "quota", "show", api.project),
        parsed(
            api, url, "server", "create", "--flavor", api.flavor.name, "--no-network", "--server-group", name, "member",
            "--image", api.image.name, role="member",
        ),
    )  # fmt: skip
    assert group["id"] in [row["ID"] for row in groups]
    assert spare in filled["hosts"]
    assert {row["Resource"]: row["Limit"] for row in quota}["instances"] == 77
    assert [(row["Status"], row["Type"]) for row in moves] == [("migrating", "resize")]
    shown = await parsed(api, url, "server", "group", "show", group["id"], role="member")
    assert member["id"] in str(shown["members"])
    await command(api, url, "aggregate", "remove", "host", str(zone["id"]), spare)


async def test_the_command_asks_for_moves(api: Api, url: str) -> None:
    """A resize and a cold migration are accepted; no host works here, so nothing comes of them."""
    resized, moved = await api.instance(), await api.instance()
    large = Flavor(id=uuid4().hex, name=f"large-{uuid4().hex[:6]}", vcpus=2, ram_mb=128, disk_gb=2)
    await api.store.flavors.add(large)
    _, _, complaint = await asyncio.gather(
        command(api, url, "server", "resize", "--flavor", large.name, resized.id, role="member"),
        command(api, url, "server", "migrate", moved.id),
        command(api, url, "server", "resize", "confirm", moved.id, role="member", fails=True),
    )
    rows = {guest.id: await api.store.instances.get(guest.id) for guest in (resized, moved)}
    assert [row and row.task_state for row in rows.values()] == [TaskState.RESIZE_PREP] * 2
    assert "Cannot 'confirmResize'" in complaint


async def test_clients_find_attach_and_detach_volumes(api: Api, url: str) -> None:
    source = {"type": "file", "path": "/srv/volumes/a"}
    path = f"/volume/v3/{api.project}/volumes"
    body = {"volume": {"name": f"data-{uuid4().hex[:6]}", "size": 3, "virtfleet:source": source}}
    volume = (await api.ask("POST", path, body, who="admin")).json()["volume"]
    guest, other = await api.instance(), await api.instance()

    def look(cloud: Any) -> None:
        assert cloud.block_storage.find_volume(volume["name"]).id == volume["id"]
        assert volume["id"] in [one.id for one in cloud.block_storage.volumes()]
        assert (cloud.get_volume(volume["name"]).size, cloud.get_volume(volume["id"]).status) == (3, "available")
        assert list(cloud.compute.volume_attachments(guest.id)) == []
        cloud.compute.create_volume_attachment(guest.id, volume_id=volume["id"])

    await sdk(api, url, look, role="member")
    stored = await api.store.instances.get(guest.id)
    assert stored is not None
    assert (stored.task_state, stored.action and stored.action.name) == (
        TaskState.BLOCK_DEVICE_MAPPING, "attach_volume",
    )  # fmt: skip
    listed, shown, complaint = await asyncio.gather(
        parsed(api, url, "volume", "list", role="member"),
        parsed(api, url, "volume", "show", volume["name"], role="member"),
        command(api, url, "server", "add", "volume", other.id, volume["name"], role="member", fails=True),
    )
    assert (volume["name"], 3) in [(row["Name"], row["Size"]) for row in listed]
    assert shown["id"] == volume["id"]
    assert "is being attached by another request" in complaint

    has = await with_a_volume(api)
    attached, _ = await asyncio.gather(
        parsed(api, url, "server", "volume", "list", has.id, role="member"),
        command(api, url, "server", "remove", "volume", has.id, has.block_devices[0]["id"], role="member"),
    )
    assert [row["Volume ID"] for row in attached] == [has.block_devices[0]["id"]]
    stored = await api.store.instances.get(has.id)
    assert stored is not None
    assert stored.action is not None
    assert stored.action.name == "detach_volume"


async def with_a_volume(api: Api) -> Instance:
    """A server that has a volume."""
    now = datetime.now(UTC)
    held = Attachment(id=str(uuid4()), instance_id=str(uuid4()), device="vdb", reserved_at=now, attached_at=now, rank=1)
    volume = Volume(
        id=str(uuid4()), name="held", project_id=api.project, user_id="u", size_gb=1,
        source=BlockSource(type="block", path="/dev/a"), attachment=held, created_at=now, updated_at=now,
    )  # fmt: skip
    await api.store.volumes.add(volume)
    device = {**device_of(volume, held.id, "vdb"), "attached_at": now.isoformat()}
    return await api.instance(id=held.instance_id, block_devices=[device])
