"""How a disk gets from one host to another: two adapters with folders of their own, real qemu-nbd, real qemu-img."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from virtfleet_common.errors import HypervisorFault
from virtfleet_common.ports import Export
from virtfleet_common.records import Image, Instance
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor
from virtfleet_compute_agent.hypervisor.layout import Layout

from tests.hypervisors import FLAVOR, NOW, an_instance, image_of, opened, qcow2, settings

MIB = 1024**2
DATA = 24 * MIB
SLOW = 16
"""MiB per second: the copy takes a second and a half."""


@dataclass(frozen=True)
class Host:
    """An adapter that was never opened, because files need no libvirt; and where its files are."""

    adapter: LibvirtHypervisor
    layout: Layout


@pytest.fixture
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="vf-tx-"))
    yield folder
    kill(of_root(folder))
    shutil.rmtree(folder)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def of_root(root: Path, name: str = "") -> list[psutil.Process]:
    """The processes that work below `root`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if name in process.name() and any(str(root) in word for word in process.cmdline()) and not is_test(process):
                found.append(process)
    return found


def is_test(process: psutil.Process) -> bool:
    return process.pid == os.getpid()


def a_host(root: Path, name: str, **fields: Any) -> Host:
    of = settings(f"qemu:///embed?root={root}", root / name, **fields)
    return Host(LibvirtHypervisor(of), Layout(root / name, of.instances_dir))


@pytest.fixture
def source(root: Path) -> Host:
    return a_host(root, "source")


@pytest.fixture
def slow(root: Path, source: Host) -> Host:
    """The source, sending slowly enough to be interrupted."""
    return a_host(root, "source", transfer_rate_mb=SLOW)


@pytest.fixture
def destination(root: Path) -> Host:
    return a_host(root, "destination")


@pytest.fixture
async def instance(root: Path, source: Host) -> Instance:
    """One whose disk lies over an image, holds data of its own in two places, and is set aside."""
    image = image_of(filled(qcow2(root / "base", "1G"), "5M", 2 * MIB))
    return await an_aside(source, image=image)


async def an_aside(source: Host, **fields: Any) -> Instance:
    made = an_instance(**fields)
    await source.adapter.create_disk(made)
    filled(source.layout.disk(made.id), "6M", DATA // 2)
    filled(source.layout.disk(made.id), "700M", DATA // 2)
    source.layout.instance(made.id).rename(source.layout.aside(made.id))
    return made


def filled(disk: Path, where: str, length: int) -> Path:
    with tempfile.NamedTemporaryFile() as noise:
        noise.write(random.randbytes(length))
        noise.flush()
        write = f"write -q -s {noise.name} {where} {length}"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, str(disk)], check=True)
    return disk


async def moved(source: Host, destination: Host, instance: Instance) -> None:
    export = await destination.adapter.open_export(instance, "t1")
    size = await source.adapter.send_disk(instance, export)
    await destination.adapter.close_export(instance.id, adopt=True, size_bytes=size)


def arrived_whole(source: Host, destination: Host, instance: Instance) -> bool:
    sent, arrived = source.layout.disk_aside(instance.id), destination.layout.disk(instance.id)
    qemu_img("check", "-q", arrived)
    qemu_img("compare", "-q", sent, arrived)  # fails unless they are the same
    return about(sent)["virtual-size"] == about(arrived)["virtual-size"]


def about(disk: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(qemu_img("info", "--output=json", disk))
    return facts


def qemu_img(*arguments: str | Path) -> bytes:
    return subprocess.run(["qemu-img", *arguments], stdout=subprocess.PIPE, timeout=60, check=True).stdout


def bytes_used(path: Path) -> int:
    return path.stat().st_blocks * 512


def has_none(folder: Path, pattern: str) -> bool:
    return not list(folder.rglob(pattern))


def is_listening(export: Export) -> bool:
    with socket.socket() as client:
        return client.connect_ex((export.address, export.port)) == 0


async def until(is_so: Callable[[], bool], limit: float = 10) -> None:
    async with asyncio.timeout(limit):
        while not is_so():  # noqa: ASYNC110 (other processes make it so, no event tells)
            await asyncio.sleep(0.02)


@contextmanager
def faulty(code: str) -> Iterator[None]:
    with pytest.raises(HypervisorFault) as failed:
        yield
    assert failed.value.facts["code"] == code, failed.value


# What arrives.


async def test_the_disk_arrives_whole_sparse_and_without_a_base(
    source: Host, destination: Host, instance: Instance, root: Path
) -> None:
    told: list[int] = []

    async def tell(percent: int) -> None:
        told.append(percent)

    export = await destination.adapter.open_export(instance, "t1")
    size = await source.adapter.send_disk(instance, export, tell)
    await destination.adapter.close_export(instance.id, adopt=True, size_bytes=size)

    assert size == 1024 * MIB
    assert told == sorted(set(told))
    assert told[-1] == 100
    assert arrived_whole(source, destination, instance)
    disk = destination.layout.disk(instance.id)
    assert about(disk)["virtual-size"] == size
    assert "backing-filename" not in about(disk)
    assert bytes_used(disk) < DATA + 4 * MIB
    assert disk.stat().st_mode & 0o777 == 0o600
    assert of_root(root) == []
    assert has_none(root, "keys.psk")


async def test_every_step_may_be_done_twice(source: Host, destination: Host, instance: Instance) -> None:
    first = await destination.adapter.open_export(instance, "t1")
    assert await destination.adapter.open_export(instance, "t1") == first
    assert Export(**json.loads(json.dumps(asdict(first)))) == first
    for _ in range(2):
        size = await source.adapter.send_disk(instance, first)
    for _ in range(2):
        await destination.adapter.close_export(instance.id, adopt=True, size_bytes=size)
    assert arrived_whole(source, destination, instance)


async def test_a_copy_replaces_what_another_left_in_the_export(
    source: Host, destination: Host, instance: Instance
) -> None:
    other = await an_aside(source)
    export = await destination.adapter.open_export(instance, "t1")
    source.layout.disk_aside(other.id).rename(kept := source.layout.state_dir / "other")
    shutil.copy(source.layout.disk_aside(instance.id), wanted := source.layout.state_dir / "wanted")
    kept.replace(source.layout.disk_aside(instance.id))
    await source.adapter.send_disk(instance, export)
    wanted.replace(source.layout.disk_aside(instance.id))
    size = await source.adapter.send_disk(instance, export)
    await destination.adapter.close_export(instance.id, adopt=True, size_bytes=size)
    assert arrived_whole(source, destination, instance)
    assert bytes_used(destination.layout.disk(instance.id)) < DATA + 4 * MIB


async def test_an_instance_without_a_disk_of_its_own_sends_nothing(source: Host, destination: Host) -> None:
    instance = an_instance(block_devices=[{"path": "/dev/null", "boot_index": 0}])
    await moved(source, destination, instance)
    assert not destination.layout.instance(instance.id).exists()


# Who may connect.


async def test_a_wrong_key_is_refused(source: Host, destination: Host, instance: Instance) -> None:
    export = await destination.adapter.open_export(instance, "t1")
    with faulty("transfer_denied"):
        await source.adapter.send_disk(instance, replace(export, key="ab" * 32))
    await moved(source, destination, instance)
    assert arrived_whole(source, destination, instance)


async def test_no_key_is_refused(destination: Host, instance: Instance) -> None:
    export = await destination.adapter.open_export(instance, "t1")
    address = f"nbd://{export.address}:{export.port}/disk"
    attempt = await asyncio.create_subprocess_exec("qemu-img", "info", address, stderr=asyncio.subprocess.PIPE)
    _, complaint = await attempt.communicate()
    assert attempt.returncode != 0
    assert b"TLS" in complaint


async def test_it_listens_on_the_hosts_address_alone(root: Path) -> None:
    host = a_host(root, "destination", host_ip="127.0.0.2")
    export = await host.adapter.open_export(an_instance(), "t1")
    assert export.address == "127.0.0.2"
    assert is_listening(export)
    assert not is_listening(replace(export, address="127.0.0.1"))


async def test_a_new_token_gets_an_empty_export_with_a_new_key(
    source: Host, destination: Host, instance: Instance, root: Path
) -> None:
    old = await destination.adapter.open_export(instance, "t1")
    await source.adapter.send_disk(instance, old)
    new = await destination.adapter.open_export(instance, "t2")
    assert new.key != old.key
    assert destination.layout.incoming(instance.id, "t2").stat().st_size < MIB
    assert len(of_root(root, "qemu-nbd")) == 1
    with pytest.raises(HypervisorFault):
        await source.adapter.send_disk(instance, old)


async def test_a_late_clean_up_leaves_a_later_export_alone(source: Host, destination: Host, instance: Instance) -> None:
    export = await destination.adapter.open_export(instance, "t2")
    await destination.adapter.close_export(instance.id, adopt=False, token="t1")
    size = await source.adapter.send_disk(instance, export)
    await destination.adapter.close_export(instance.id, adopt=True, size_bytes=size, token="t2")
    assert arrived_whole(source, destination, instance)


async def test_nobody_listens_after_it_was_closed(
    source: Host, destination: Host, instance: Instance, root: Path
) -> None:
    export = await destination.adapter.open_export(instance, "t1")
    for _ in range(2):
        await destination.adapter.close_export(instance.id, adopt=False)
    assert not is_listening(export)
    assert of_root(root) == []
    assert not destination.layout.incoming(instance.id, "t1").exists()
    with faulty("transfer_refused"):
        await source.adapter.send_disk(instance, export)


async def test_deleting_the_instances_files_ends_its_export(destination: Host, instance: Instance, root: Path) -> None:
    await destination.adapter.open_export(instance, "t1")
    await destination.adapter.delete_files(instance.id)
    assert of_root(root) == []
    assert list(destination.layout.instances.iterdir()) == []


async def test_an_export_ends_by_itself(root: Path) -> None:
    host = a_host(root, "destination", transfer_timeout=0.5)
    instance = an_instance()
    first = await host.adapter.open_export(instance, "t1")
    await until(lambda: not of_root(root))
    assert not is_listening(first)
    assert await host.adapter.open_export(instance, "t1") != first


async def test_a_taken_port_is_passed_over(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with faulty("no_port"):
            await a_host(root, "one", transfer_ports=(port, port)).adapter.open_export(an_instance(), "t1")
        export = await a_host(root, "two", transfer_ports=(port - 1, port + 1)).adapter.open_export(an_instance(), "t1")
    assert export.port != port


async def test_many_exports_of_one_host_do_not_meet(root: Path, destination: Host) -> None:
    opening = (destination.adapter.open_export(an_instance(), "t1") for _ in range(8))
    assert len({export.port for export in await asyncio.gather(*opening)}) == 8


# What breaks.


async def test_a_killed_copy_is_made_again(
    slow: Host, source: Host, destination: Host, instance: Instance, root: Path
) -> None:
    async def strike(percent: int) -> None:
        if percent >= 30:
            kill(of_root(root, "qemu-img"))

    export = await destination.adapter.open_export(instance, "t1")
    with faulty("transfer_failed"):
        await slow.adapter.send_disk(instance, export, strike)
    await moved(source, destination, instance)
    assert arrived_whole(source, destination, instance)


async def test_whoever_stops_waiting_stops_the_copy(
    slow: Host, destination: Host, instance: Instance, root: Path
) -> None:
    halfway = asyncio.Event()

    async def tell(percent: int) -> None:
        if percent >= 30:
            halfway.set()

    export = await destination.adapter.open_export(instance, "t1")
    sending = asyncio.create_task(slow.adapter.send_disk(instance, export, tell))
    await halfway.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert of_root(root, "qemu-img") == []
    assert is_listening(export)


async def test_a_progress_that_cannot_be_told_stops_the_copy(
    slow: Host, destination: Host, instance: Instance, root: Path
) -> None:
    async def fail(percent: int) -> None:
        raise LookupError

    export = await destination.adapter.open_export(instance, "t1")
    with pytest.raises(LookupError):
        await slow.adapter.send_disk(instance, export, fail)
    assert of_root(root, "qemu-img") == []


async def test_a_stalled_copy_is_given_up(destination: Host, instance: Instance, root: Path) -> None:
    stalling = a_host(root, "source", transfer_stall=0.5)
    export = await destination.adapter.open_export(instance, "t1")
    for server in of_root(root, "qemu-nbd"):
        server.suspend()
    with faulty("transfer_stalled"):
        await stalling.adapter.send_disk(instance, export)
    assert of_root(root, "qemu-img") == []


async def test_a_slow_copy_is_not_a_stalled_one(root: Path, source: Host, destination: Host) -> None:
    """qemu-img keeps to its rate by bursts of 16 MiB, one in 0.7 s here."""
    instance = await an_aside(source)
    filled(source.layout.disk_aside(instance.id), "200M", 48 * MIB)
    slow = a_host(root, "source", transfer_stall=2, transfer_rate_mb=24)
    export = await destination.adapter.open_export(instance, "t1")
    begun = time.monotonic()
    await slow.adapter.send_disk(instance, export)
    assert time.monotonic() - begun > 2


async def test_a_destination_that_went_away_is_a_fault(
    slow: Host, source: Host, destination: Host, instance: Instance, root: Path
) -> None:
    async def strike(percent: int) -> None:
        if percent >= 30:
            kill(of_root(root, "qemu-nbd"))

    export = await destination.adapter.open_export(instance, "t1")
    with pytest.raises(HypervisorFault):
        await slow.adapter.send_disk(instance, export, strike)
    with faulty("transfer_refused"):
        await slow.adapter.send_disk(instance, export)
    await moved(source, destination, instance)
    assert arrived_whole(source, destination, instance)


@pytest.fixture
def small(root: Path) -> Iterator[Host]:
    """A destination with room for less than the disk."""
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    folder = root / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)], check=True)
    yield a_host(root, "destination", instances_dir=folder)
    for process in of_root(root):
        process.kill()
        process.wait(10) if process.ppid() == os.getpid() else psutil.wait_procs([process], 10)
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_full_destination_is_told_from_other_faults(source: Host, small: Host, instance: Instance) -> None:
    before = source.layout.disk_aside(instance.id).read_bytes()
    export = await small.adapter.open_export(instance, "t1")
    with faulty("destination_full"):
        await source.adapter.send_disk(instance, export)
    await small.adapter.close_export(instance.id, adopt=False)
    assert list(small.layout.instances.iterdir()) == []
    assert source.layout.disk_aside(instance.id).read_bytes() == before


async def test_nothing_is_overwritten_and_nothing_made_up(source: Host, destination: Host, instance: Instance) -> None:
    with faulty("no_disk"):
        await destination.adapter.close_export(instance.id, adopt=True, size_bytes=MIB)
    export = await destination.adapter.open_export(instance, "t1")
    size = await source.adapter.send_disk(instance, export)
    disk = destination.layout.disk(instance.id)
    disk.parent.mkdir()
    disk.write_text("another's")
    with faulty("disk_exists"):
        await destination.adapter.close_export(instance.id, adopt=True, size_bytes=size)
    assert disk.read_text() == "another's"
    with faulty("no_disk"):
        await source.adapter.send_disk(an_instance(), export)


# Agents that are killed.

AGENT = """
import asyncio, json, os, signal, sys
from pathlib import Path
from virtfleet_common.ports import Export
from virtfleet_common.records import Instance
from virtfleet_common.settings import AgentSettings
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor

async def main(root, name, record, export):
    uri, state = f"qemu:///embed?root={root}", Path(root, name)
    adapter = LibvirtHypervisor(AgentSettings(hypervisor_uri=uri, state_dir=state, transfer_rate_mb=1))
    instance = Instance.model_validate_json(record)
    if export:
        await adapter.send_disk(instance, Export(**json.loads(export)))
    else:
        print(await adapter.open_export(instance, "t1"), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(*sys.argv[1:]))
"""


def run_agent(root: Path, name: str, instance: Instance, export: str = "", **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-c", AGENT, str(root), name, instance.model_dump_json(by_alias=True), export]
    ended = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    return ended.returncode, ended.stdout.strip()


async def test_an_export_outlives_its_agent_and_is_found_again(
    root: Path, source: Host, destination: Host, instance: Instance
) -> None:
    status, opened_before = await asyncio.to_thread(run_agent, root, "destination", instance)
    assert status == -signal.SIGKILL
    export = await destination.adapter.open_export(instance, "t1")
    assert repr(export) == opened_before
    await moved(source, destination, instance)
    assert arrived_whole(source, destination, instance)


async def test_a_copy_dies_with_its_agent_and_is_made_again(
    root: Path, source: Host, destination: Host, instance: Instance
) -> None:
    traps = root / "traps"
    traps.mkdir()
    (traps / "send_disk.middle").write_text("kill")
    export = await destination.adapter.open_export(instance, "t1")
    facts = json.dumps(asdict(export))
    status, _ = await asyncio.to_thread(run_agent, root, "source", instance, facts, VIRTFLEET_FAILPOINTS=str(traps))
    assert status == -signal.SIGKILL
    await until(lambda: not of_root(root, "qemu-img"))  # by itself, it would take longer
    assert await destination.adapter.open_export(instance, "t1") == export
    await moved(source, destination, instance)
    assert arrived_whole(source, destination, instance)


async def test_a_disk_is_put_back_only_when_nobody_copies_it(
    root: Path, slow: Host, source: Host, destination: Host, instance: Instance
) -> None:
    """As if the copy of a killed agent had not died with it."""
    export = await destination.adapter.open_export(instance, "t1")
    copying = asyncio.create_task(slow.adapter.send_disk(instance, export))
    await until(lambda: bool(of_root(root, "qemu-img")))
    await source.adapter.put_back(instance.id)
    assert of_root(root, "qemu-img") == []
    assert source.layout.disk(instance.id).exists()
    with pytest.raises(HypervisorFault):
        await copying


# What stays, and what is shared.


@pytest.fixture
async def real(embedded: LibvirtHypervisor) -> AsyncIterator[LibvirtHypervisor]:
    yield embedded
    for guest in await embedded.list_guests():
        await embedded.destroy(guest.instance_id)
        await embedded.undefine(guest.instance_id)
        await embedded.delete_files(guest.instance_id)


@pytest.mark.qemu
async def test_what_is_set_aside_can_be_put_back(real: LibvirtHypervisor, embed_root: Path) -> None:
    layout, instance = Layout(embed_root / "state"), an_instance()
    await real.create_disk(instance)
    await real.define(instance)
    await real.start(instance.id)
    with faulty("running"):
        await real.set_aside(instance.id)
    await real.destroy(instance.id)
    number = layout.disk(instance.id).stat().st_ino
    for _ in range(2):
        await real.set_aside(instance.id)
        assert not layout.instance(instance.id).exists()
        assert layout.disk_aside(instance.id).stat().st_ino == number
    await real.define(instance)  # which makes a folder without a disk
    for _ in range(2):
        await real.put_back(instance.id)
        assert not layout.aside(instance.id).exists()
        assert layout.disk(instance.id).stat().st_ino == number
    await real.start(instance.id)


@pytest.mark.qemu
async def test_a_disk_set_aside_by_a_move_that_was_given_up_is_taken_back(
    real: LibvirtHypervisor, embed_root: Path
) -> None:
    layout, instance = Layout(embed_root / "state"), an_instance()
    await real.create_disk(instance)
    number = layout.disk(instance.id).stat().st_ino
    await real.set_aside(instance.id)
    await real.create_disk(instance)
    assert layout.disk(instance.id).stat().st_ino == number
    assert not layout.aside(instance.id).exists()


@pytest.mark.qemu
async def test_one_disk_is_never_lost_to_another(real: LibvirtHypervisor, embed_root: Path) -> None:
    layout, instance = Layout(embed_root / "state"), an_instance()
    with faulty("no_disk"):
        await real.set_aside(instance.id)
    with faulty("no_disk"):
        await real.put_back(instance.id)
    await real.create_disk(instance)
    await real.set_aside(instance.id)
    shutil.copytree(layout.aside(instance.id), layout.instance(instance.id))
    with faulty("aside_exists"):
        await real.set_aside(instance.id)
    with faulty("disk_exists"):
        await real.put_back(instance.id)
    for _ in range(2):
        await real.remove_aside(instance.id)
        assert not layout.aside(instance.id).exists()
    assert layout.disk(instance.id).exists()
    await real.delete_files(instance.id)


async def test_shared_storage_is_recognised(root: Path, source: Host, destination: Host) -> None:
    together = [a_host(root, name, instances_dir=root / "shared").adapter for name in ("one", "two")]
    for token in ("t1", "t/2"):
        for _ in range(2):
            await together[0].probe_shared(token)
        assert await together[1].sees_probe(token)
        assert not await source.adapter.sees_probe(token)
        for _ in range(2):
            await together[0].remove_probe(token)
        assert not await together[1].sees_probe(token)
    await destination.adapter.probe_shared("t1")
    assert not await source.adapter.sees_probe("t1")


async def test_storage_that_cannot_be_looked_at_is_neither_shared_nor_not(root: Path) -> None:
    (root / "file").touch()
    with pytest.raises(HypervisorFault):
        await a_host(root, "one", instances_dir=root / "file").adapter.sees_probe("t1")


async def test_a_shared_disk_finds_its_base_on_the_host_that_takes_it_over(root: Path) -> None:
    one, two = (a_host(root, name, instances_dir=root / "shared") for name in ("one", "two"))
    instance = an_instance(image=image_of(filled(qcow2(root / "base", "10M"), "1M", MIB)))
    await one.adapter.create_disk(instance)
    await two.adapter.create_disk(instance)
    shutil.rmtree(one.layout.images)
    qemu_img("compare", "-q", root / "base", two.layout.disk(instance.id))


async def test_a_disk_that_came_needs_no_image_any_more(source: Host, destination: Host, instance: Instance) -> None:
    await moved(source, destination, instance)
    gone: Image = instance.image.model_copy(update={"location": "/nowhere"})  # type: ignore[union-attr]
    await destination.adapter.create_disk(instance.model_copy(update={"image": gone}))
    assert arrived_whole(source, destination, instance)
    assert not destination.layout.images.exists()


async def test_a_guest_that_was_launched_before_gets_no_fresh_disk(source: Host, destination: Host) -> None:
    launched = an_instance(launched_at=NOW)
    with faulty("no_disk"):
        await destination.adapter.create_disk(launched)
    assert not destination.layout.instance(launched.id).exists()
    await destination.adapter.create_disk(launched, is_anew=True)
    for _ in range(2):
        number = destination.layout.disk(launched.id).stat().st_ino
        destination.layout.instance(launched.id).rename(destination.layout.aside(launched.id))
        await destination.adapter.create_disk(launched)
        assert destination.layout.disk(launched.id).stat().st_ino == number
    await source.adapter.create_disk(
        an_instance(launched_at=NOW, image=None, block_devices=[{"path": "/v", "boot_index": 0}])
    )


async def test_a_disk_grows_and_never_shrinks(destination: Host) -> None:
    def sized(disk_gb: int) -> Instance:
        return instance.model_copy(update={"flavor": FLAVOR.model_copy(update={"disk_gb": disk_gb})})

    instance = an_instance()
    await destination.adapter.create_disk(sized(2))
    for disk_gb, expected in ((3, 3), (3, 3), (1, 3), (0, 3)):
        await destination.adapter.grow_disk(sized(disk_gb))
        header = destination.layout.disk(instance.id).read_bytes()[24:32]
        assert int.from_bytes(header, "big") == expected * 1024**3


async def test_a_simulated_host_has_nothing_to_send(tmp_path: Path) -> None:
    async with opened(settings("test:///default", tmp_path)) as hypervisor:
        instance = an_instance()
        export = await hypervisor.open_export(instance, "t1")
        assert await hypervisor.sees_probe("t1")
        await hypervisor.probe_shared("t1")
        await hypervisor.remove_probe("t1")
        await hypervisor.set_aside(instance.id)
        assert await hypervisor.send_disk(instance, export) == 0
        await hypervisor.close_export(instance.id, adopt=True)
        await hypervisor.grow_disk(instance)
        await hypervisor.put_back(instance.id)
        await hypervisor.remove_aside(instance.id)
    assert has_none(tmp_path, "*")
