"""What every Hypervisor does, on libvirt's test driver and on a real QEMU driver inside this process."""

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from virtfleet_common import failpoints
from virtfleet_common.errors import HypervisorFault, HypervisorTimeout, ImageFault
from virtfleet_common.ports import Guest, GuestEvent, Hypervisor
from virtfleet_common.records import Instance
from virtfleet_common.states import PowerState
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor, libvirt_driver
from virtfleet_compute_agent.hypervisor.images import ImageCache
from virtfleet_compute_agent.hypervisor.layout import Layout
from virtfleet_compute_agent.hypervisor.pool import Pool

from tests.hypervisors import FLAVOR, an_instance, image_of, kill_guests_under, opened, qcow2, settings

MIB = 1024**2
OFF, RUNNING = frozenset({PowerState.SHUTOFF}), frozenset({PowerState.RUNNING})
PROMPTLY = 30.0
"""Seconds after which what should come has not come."""


# An adapter on each driver.


@pytest.fixture(params=["test", pytest.param("qemu", marks=pytest.mark.qemu)])
def real_or_none(request: pytest.FixtureRequest) -> LibvirtHypervisor | None:
    """The QEMU adapter, or None in the turn of the test driver. Not async, so that it may ask for one that is."""
    return request.getfixturevalue("embedded") if request.param == "qemu" else None


@pytest.fixture
async def hypervisor(real_or_none: LibvirtHypervisor | None, tmp_path: Path) -> AsyncIterator[LibvirtHypervisor]:
    if real_or_none is not None:
        yield real_or_none
        await remove_guests(real_or_none)
        return
    async with opened(settings("test:///default", tmp_path)) as simulated:
        yield simulated
        await remove_guests(simulated)


@pytest.fixture
async def real(embedded: LibvirtHypervisor) -> AsyncIterator[LibvirtHypervisor]:
    yield embedded
    await remove_guests(embedded)


async def remove_guests(hypervisor: Hypervisor) -> None:
    await asyncio.gather(*(remove(hypervisor, guest.instance_id) for guest in await hypervisor.list_guests()))


async def remove(hypervisor: Hypervisor, instance_id: str) -> None:
    await hypervisor.destroy(instance_id)
    await hypervisor.undefine(instance_id)
    await hypervisor.delete_files(instance_id)


async def build(hypervisor: Hypervisor, **fields: Any) -> Instance:
    instance = an_instance(**fields)
    await hypervisor.create_disk(instance)
    await hypervisor.define(instance)
    return instance


async def run(hypervisor: Hypervisor, **fields: Any) -> Instance:
    instance = await build(hypervisor, **fields)
    await hypervisor.start(instance.id)
    return instance


async def seen(hypervisor: Hypervisor, instance: Instance) -> Guest:
    guest = await hypervisor.observe(instance.id)
    assert guest is not None
    return guest


async def state_of(hypervisor: Hypervisor, instance: Instance) -> PowerState:
    return (await seen(hypervisor, instance)).power_state


# What both drivers do.


async def test_it_says_what_the_host_has(hypervisor: LibvirtHypervisor) -> None:
    facts = await hypervisor.facts()
    assert facts.hypervisor_type in {"TEST", "QEMU"}
    assert facts.total.vcpus >= 1
    assert facts.total.ram_mb >= 64
    assert facts.total.disk_gb >= 1


async def test_a_host_starts_without_guests_of_ours(hypervisor: LibvirtHypervisor) -> None:
    assert list(await hypervisor.list_guests()) == []
    assert await hypervisor.observe(str(uuid4())) is None


async def test_a_guest_is_seen_as_it_was_defined(hypervisor: LibvirtHypervisor) -> None:
    instance = await build(hypervisor, epoch=5)
    off = Guest(instance.id, PowerState.SHUTOFF, None, epoch=5, action_id=None)
    assert await hypervisor.observe(instance.id) == off
    assert list(await hypervisor.list_guests()) == [off]


async def test_a_life_and_each_of_its_steps_twice(hypervisor: LibvirtHypervisor) -> None:
    instance = an_instance()
    steps: list[tuple[Callable[[], Awaitable[None]], PowerState | None]] = [
        (lambda: hypervisor.define(instance), PowerState.SHUTOFF),
        (lambda: hypervisor.start(instance.id), PowerState.RUNNING),
        (lambda: hypervisor.pause(instance.id), PowerState.PAUSED),
        (lambda: hypervisor.unpause(instance.id), PowerState.RUNNING),
        (lambda: hypervisor.save(instance.id), PowerState.SHUTOFF),
        (lambda: hypervisor.start(instance.id), PowerState.RUNNING),
        (lambda: hypervisor.destroy(instance.id), PowerState.SHUTOFF),
        (lambda: hypervisor.request_shutdown(instance.id), PowerState.SHUTOFF),
        (lambda: hypervisor.undefine(instance.id), None),
        (lambda: hypervisor.destroy(instance.id), None),
        (lambda: hypervisor.delete_files(instance.id), None),
    ]
    await hypervisor.create_disk(instance)
    for step, expected in steps:
        for _ in range(2):
            await step()
            guest = await hypervisor.observe(instance.id)
            assert (guest.power_state if guest else None) == expected


async def test_a_saved_guest_says_so_until_it_is_undefined(hypervisor: LibvirtHypervisor) -> None:
    instance = await run(hypervisor)
    await hypervisor.save(instance.id)
    assert (await seen(hypervisor, instance)).has_managed_save
    assert [guest.has_managed_save for guest in await hypervisor.list_guests()] == [True]
    await hypervisor.undefine(instance.id)
    await hypervisor.define(instance)
    assert not (await seen(hypervisor, instance)).has_managed_save


async def test_a_start_lets_a_paused_guest_go_on(hypervisor: LibvirtHypervisor) -> None:
    instance = await run(hypervisor)
    await hypervisor.pause(instance.id)
    await hypervisor.start(instance.id)
    assert await state_of(hypervisor, instance) is PowerState.RUNNING


async def test_a_restart_changes_the_domain_id(hypervisor: LibvirtHypervisor) -> None:
    instance = await run(hypervisor)
    before = (await seen(hypervisor, instance)).domain_id
    await hypervisor.destroy(instance.id)
    await hypervisor.start(instance.id)
    after = (await seen(hypervisor, instance)).domain_id
    assert before is not None
    assert after not in {None, before}


async def test_a_new_definition_carries_the_new_epoch(hypervisor: LibvirtHypervisor) -> None:
    instance = await build(hypervisor, epoch=1)
    await hypervisor.define(instance.model_copy(update={"epoch": 2}))
    assert [guest.epoch for guest in await hypervisor.list_guests()] == [2]


async def test_a_running_guest_is_not_undefined(hypervisor: LibvirtHypervisor) -> None:
    instance = await run(hypervisor)
    with pytest.raises(HypervisorFault) as refused:
        await hypervisor.undefine(instance.id)
    assert refused.value.facts["operation"] == "undefine"
    assert await state_of(hypervisor, instance) is PowerState.RUNNING


async def test_what_is_not_there_cannot_be_started(hypervisor: LibvirtHypervisor) -> None:
    with pytest.raises(HypervisorFault) as failed:
        await hypervisor.start(str(uuid4()))
    assert failed.value.facts["operation"] == "start"
    assert failed.value.facts["code"] == 42  # libvirt's VIR_ERR_NO_DOMAIN


async def test_a_wait_ends_with_the_event(hypervisor: LibvirtHypervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_driver, "_RECHECK", 120.0)
    instance = await run(hypervisor)
    waiting = asyncio.create_task(hypervisor.wait_for_power_state(instance.id, OFF, timeout=120))
    await hypervisor.destroy(instance.id)
    async with asyncio.timeout(PROMPTLY):
        guest = await waiting
    assert guest is not None
    assert guest.power_state is PowerState.SHUTOFF


async def test_a_wait_in_vain_says_what_is(hypervisor: LibvirtHypervisor) -> None:
    instance = await build(hypervisor)
    guest = await hypervisor.wait_for_power_state(instance.id, RUNNING, timeout=0.05)
    assert guest is not None
    assert guest.power_state is PowerState.SHUTOFF


async def test_lifecycle_changes_are_reported(hypervisor: LibvirtHypervisor) -> None:
    events = hypervisor.events()
    instance = await run(hypervisor)
    await until_event(events, GuestEvent(instance.id, PowerState.RUNNING))
    await hypervisor.pause(instance.id)
    await until_event(events, GuestEvent(instance.id, PowerState.PAUSED))
    await hypervisor.destroy(instance.id)
    await until_event(events, GuestEvent(instance.id, PowerState.SHUTOFF))
    await hypervisor.undefine(instance.id)
    await until_event(events, GuestEvent(instance.id, PowerState.NOSTATE))


async def until_event(events: AsyncIterator[GuestEvent], wanted: GuestEvent) -> None:
    async with asyncio.timeout(PROMPTLY):
        while await anext(events) != wanted:
            pass


async def test_only_an_instance_id_names_files_to_delete(hypervisor: LibvirtHypervisor) -> None:
    with pytest.raises(HypervisorFault):
        await hypervisor.delete_files("../images")


# What the test driver is enough to show: calls that hang, many guests, closing.


async def test_a_hung_call_holds_up_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traps = tmp_path / "traps"
    traps.mkdir()
    monkeypatch.setattr(failpoints, "_FOLDER", str(traps))
    limits = settings("test:///default", tmp_path, libvirt_workers=2, libvirt_timeout=1)
    async with opened(limits) as hypervisor:
        one, other = await run(hypervisor), await run(hypervisor)
        await hang(hypervisor, one, traps)
        await hypervisor.pause(other.id)
        assert await state_of(hypervisor, other) is PowerState.PAUSED
        assert hypervisor.is_responsive

        await hang(hypervisor, one, traps)
        assert not hypervisor.is_responsive
        assert {guest.instance_id for guest in await hypervisor.list_guests()} == {one.id, other.id}
        with pytest.raises(HypervisorTimeout):
            await hypervisor.observe(other.id)

        (traps / "hypervisor.destroy.release").touch()
        await until(lambda: hypervisor.is_responsive)
        await remove_guests(hypervisor)


async def hang(hypervisor: Hypervisor, instance: Instance, traps: Path) -> None:
    (traps / "hypervisor.destroy").write_text("hang")
    with pytest.raises(HypervisorTimeout):
        await hypervisor.destroy(instance.id)


async def test_hung_listings_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "_FOLDER", str(tmp_path))
    async with opened(settings("test:///default", tmp_path, listing_timeout=0.5)) as hypervisor:
        (tmp_path / "hypervisor.list_guests").write_text("hang")
        for waited in (0.5, 0.0):
            with pytest.raises(HypervisorTimeout) as gave_up:
                await hypervisor.list_guests()
            assert gave_up.value.facts["seconds"] == waited
        assert not hypervisor.is_responsive
        assert await hypervisor.observe(str(uuid4())) is None

        (tmp_path / "hypervisor.list_guests.release").touch()
        await until(lambda: hypervisor.is_responsive)
        assert list(await hypervisor.list_guests()) == []


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PROMPTLY):
        while not is_so():  # noqa: ASYNC110 (threads set it, no event tells)
            await asyncio.sleep(0.01)


async def test_a_listing_of_many_guests_is_cheap(tmp_path: Path) -> None:
    async with opened(settings("test:///default", tmp_path)) as hypervisor:
        for _ in range(200):
            await build(hypervisor)
        together, each = [], []
        for _ in range(5):
            start = time.process_time()
            guests = await hypervisor.list_guests()
            together.append(time.process_time() - start)
            start = time.process_time()
            assert [await hypervisor.observe(guest.instance_id) for guest in guests] == list(guests)
            each.append(time.process_time() - start)
        await remove_guests(hypervisor)
    assert len(guests) == 200
    assert min(together) < min(each) / 2


async def test_hosts_of_the_test_driver_are_their_own_when_made_from_a_file(tmp_path: Path) -> None:
    node = tmp_path / "node.xml"
    node.write_text("<node/>")
    of_file = settings(f"test:///{node}", tmp_path, simulated_vcpus=3, simulated_ram_mb=77, simulated_disk_gb=9)
    async with opened(of_file) as one, opened(of_file) as other:
        await build(one)
        assert len(await one.list_guests()) == 1
        assert list(await other.list_guests()) == []
        total = (await one.facts()).total
        assert (total.vcpus, total.ram_mb, total.disk_gb) == (3, 77, 9)


async def test_an_image_comes_over_http(tmp_path: Path) -> None:
    """Here, not with QEMU, because a test host keeps no images: the cache alone is asked."""
    served = tmp_path / "served"
    served.mkdir()
    image = image_of(qcow2(served / "disk", "1M"))
    layout = Layout(tmp_path / "state")
    with http_server(served) as address:
        cache = ImageCache(layout, Pool("files", 1), limit=10)
        await cache.fetch(image.model_copy(update={"location": f"{address}/disk"}))
        with pytest.raises(ImageFault):
            await cache.fetch(image_of(served / "disk", location=f"{address}/none", checksum="sha256:" + "1" * 64))
    assert [path.read_bytes() for path in layout.images.iterdir()] == [(served / "disk").read_bytes()]


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_subscriptions_end_with_the_connection(tmp_path: Path) -> None:
    async with opened(settings("test:///default", tmp_path)) as hypervisor:
        events = hypervisor.events()
    assert [event async for event in events] == []


async def test_a_host_that_cannot_be_reached_is_a_fault(tmp_path: Path) -> None:
    hypervisor = LibvirtHypervisor(settings(f"test:///{tmp_path}/missing.xml", tmp_path))
    with pytest.raises(HypervisorFault):
        await hypervisor.open()


# What only a driver with files shows.


def write_into(disk: Path) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 4k", str(disk)], check=True)


def virtual_size(disk: Path) -> int:
    return int.from_bytes(disk.read_bytes()[24:32], "big")


def folder_of(embed_root: Path, instance: Instance) -> Path:
    return embed_root / "state" / "instances" / instance.id


@pytest.mark.qemu
async def test_a_disk_lies_over_its_image_and_is_grown_to_the_flavor(
    real: LibvirtHypervisor, embed_root: Path, tmp_path: Path
) -> None:
    image = image_of(qcow2(tmp_path / "base", "10M"))
    small = await run(real, image=image)
    large = await build(real, image=image, flavor=FLAVOR.model_copy(update={"disk_gb": 2}))
    assert virtual_size(folder_of(embed_root, small) / "disk") == 10 * MIB
    assert virtual_size(folder_of(embed_root, large) / "disk") == 2048 * MIB
    assert await state_of(real, small) is PowerState.RUNNING


@pytest.mark.qemu
async def test_a_disk_that_is_there_is_kept_and_a_lost_base_comes_back(
    real: LibvirtHypervisor, embed_root: Path, tmp_path: Path
) -> None:
    image = image_of(qcow2(tmp_path / "base", "10M"))
    instance = await build(real, image=image)
    disk = folder_of(embed_root, instance) / "disk"
    write_into(disk)
    before = disk.read_bytes()
    base = embed_root / "state" / "images" / image.checksum.removeprefix("sha256:")
    base.unlink()
    await real.create_disk(instance)
    assert base.exists()
    assert disk.read_bytes() == before


@pytest.mark.qemu
async def test_many_wants_of_one_image_copy_it_once(real: LibvirtHypervisor, embed_root: Path, tmp_path: Path) -> None:
    image = image_of(qcow2(tmp_path / "base", "11M"))
    await asyncio.gather(*(real.fetch_image(image) for _ in range(5)))
    (tmp_path / "base").unlink()
    await real.fetch_image(image)
    assert not list((embed_root / "state" / "images").glob("*.part*"))


@pytest.mark.qemu
async def test_bad_images_are_refused_and_not_kept(real: LibvirtHypervisor, embed_root: Path, tmp_path: Path) -> None:
    good = qcow2(tmp_path / "good", "12M")
    backed = qcow2(tmp_path / "backed", "12M", "-F", "raw", "-b", "/etc/hostname")
    text = tmp_path / "text"
    text.write_text("no disk")
    bad = [
        image_of(good, checksum="sha256:" + "0" * 64),
        image_of(good, location=str(tmp_path / "missing")),
        image_of(good, location="ftp://example.org/disk"),
        image_of(good, checksum="md5:1"),
        image_of(backed),
        image_of(text),
    ]
    for image in bad:
        with pytest.raises(ImageFault):
            await real.fetch_image(image)
    kept = {path.name for path in (embed_root / "state" / "images").glob("*")}
    assert not kept & {image.checksum.removeprefix("sha256:") for image in bad}
    assert not [name for name in kept if "part" in name]


@pytest.mark.qemu
async def test_an_image_larger_than_the_flavor_is_refused(real: LibvirtHypervisor, tmp_path: Path) -> None:
    image = image_of(qcow2(tmp_path / "base", "2G"))
    instance = an_instance(image=image, flavor=FLAVOR.model_copy(update={"disk_gb": 1}))
    with pytest.raises(ImageFault):
        await real.create_disk(instance)
    await real.delete_files(instance.id)


@pytest.mark.qemu
async def test_a_lost_volume_is_named(real: LibvirtHypervisor, tmp_path: Path) -> None:
    there, gone = tmp_path / "there", tmp_path / "gone"
    there.touch()
    instance = an_instance(block_devices=[{"path": str(there)}, {"path": str(gone)}])
    assert list(await real.lost_volumes(instance)) == [str(gone)]


@pytest.mark.qemu
async def test_the_console_is_kept_across_starts(real: LibvirtHypervisor, embed_root: Path) -> None:
    instance = await build(real)
    log = folder_of(embed_root, instance) / "console.log"
    log.write_bytes(b"boot 1\r\n\x1b[1mlogin:\x1b[0m \x07")
    await real.start(instance.id)
    await real.start(instance.id)
    assert log.with_name("console.log.1").exists()
    assert await real.console_output(instance.id, None) == "boot 1\nlogin: "


@pytest.mark.qemu
async def test_deleting_removes_the_folder_and_nothing_else(real: LibvirtHypervisor, embed_root: Path) -> None:
    one, other = await build(real), await build(real)
    await real.delete_files(one.id)
    assert not folder_of(embed_root, one).exists()
    assert folder_of(embed_root, other).exists()


AGENT = """
import asyncio, os, signal, sys
from pathlib import Path
from virtfleet_common.records import Instance
from virtfleet_common.settings import AgentSettings
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor

async def main(root, life, record):
    instance = Instance.model_validate_json(record)
    uri = f"qemu:///embed?root={root}"
    hypervisor = LibvirtHypervisor(AgentSettings(hypervisor_uri=uri, state_dir=Path(root, "state"), virt_type="qemu"))
    await hypervisor.open()
    if life == "first":
        await hypervisor.create_disk(instance)
        await hypervisor.define(instance)
        await hypervisor.start(instance.id)
        os.kill(os.getpid(), signal.SIGKILL)
    [guest] = await hypervisor.list_guests()
    assert guest.instance_id == instance.id and guest.is_ours and guest.epoch == instance.epoch, guest
    print(guest.power_state.name)
    await hypervisor.destroy(instance.id)
    await hypervisor.undefine(instance.id)
    await hypervisor.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.qemu
def test_guests_outlive_a_killed_agent(embedded: LibvirtHypervisor, embed_root: Path) -> None:
    root = Path(tempfile.mkdtemp(prefix="vf-"))
    try:
        shutil.copytree(embed_root / "cache", root / "cache")  # spares a new probe of QEMU
        record = an_instance(epoch=9).model_dump_json(by_alias=True)
        assert agent(root, "first", record).returncode == -signal.SIGKILL
        assert len(list(root.glob("run/qemu/vf-*.pid"))) == 1
        second = agent(root, "second", record)
        assert second.stdout.split() == ["RUNNING"], second.stderr
        assert second.returncode == 0
    finally:
        kill_guests_under(root)
        shutil.rmtree(root)


def agent(root: Path, life: str, record: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", AGENT, str(root), life, record]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
