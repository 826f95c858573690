"""One QEMU driver in this process, for every test that works with real guests: libvirt allows no second."""

import pwd
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from virtfleet_compute_agent.hypervisor import LibvirtHypervisor

from tests.hypervisors import kill_guests_under, opened, settings


@pytest.fixture(scope="session")
def embed_root() -> Iterator[Path]:
    """The root of the QEMU driver; a short path, for QEMU's sockets lie below it."""
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        pytest.skip("libvirt's QEMU driver needs the system account libvirt-qemu")
    root = Path(tempfile.mkdtemp(prefix="vf-"))
    yield root
    kill_guests_under(root)
    shutil.rmtree(root)


@pytest.fixture(scope="session")
async def embedded(embed_root: Path) -> AsyncIterator[LibvirtHypervisor]:
    """The adapter on it."""
    quick = {"detach_timeout": 10, "detach_retry": 1}
    async with opened(settings(f"qemu:///embed?root={embed_root}", embed_root / "state", **quick)) as hypervisor:
        yield hypervisor
