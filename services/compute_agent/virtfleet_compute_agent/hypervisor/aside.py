"""What a source keeps of an instance that moves away, and how two hosts find out that they share storage. Blocking."""

import hashlib
import shutil
from pathlib import Path

from virtfleet_common.errors import HypervisorFault

from virtfleet_compute_agent.hypervisor.disks import delete_folder
from virtfleet_compute_agent.hypervisor.layout import Layout


def set_aside(layout: Layout, instance_id: str) -> None:
    """Rename the instance's folder. Beside one set aside, a folder without a disk is worth nothing."""
    own, aside = layout.instance(instance_id), layout.aside(instance_id)
    if aside.exists():
        if layout.disk(instance_id).exists():
            raise _fault(f"{aside} of an earlier move is still there", "aside_exists", "set_aside")
        return
    _rename(own, aside, "set_aside")


def put_back(layout: Layout, instance_id: str) -> None:
    """Rename it back."""
    own, aside = layout.instance(instance_id), layout.aside(instance_id)
    if not aside.exists() and own.exists():
        return
    if layout.disk(instance_id).exists():
        raise _fault(f"{own} has a disk, and so has {aside}", "disk_exists", "put_back")
    if aside.exists():
        shutil.rmtree(own, ignore_errors=True)
    _rename(aside, own, "put_back")


def remove_aside(layout: Layout, instance_id: str) -> None:
    """Delete the folder that was set aside."""
    delete_folder(layout.aside(instance_id))


def leave_probe(layout: Layout, token: str) -> None:
    """Have a file among the instances' folders that only who knows the token looks for."""
    probe = _probe(layout, token)
    probe.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    probe.touch(mode=0o600)


def sees_probe(layout: Layout, token: str) -> bool:
    """Whether the file is here, whoever left it. Raises OSError when nobody can tell."""
    try:
        _probe(layout, token).stat()
    except FileNotFoundError:
        return False
    return True


def remove_probe(layout: Layout, token: str) -> None:
    """Take the file away."""
    _probe(layout, token).unlink(missing_ok=True)


def _probe(layout: Layout, token: str) -> Path:
    """Any text may be a token; not every text may be a file's name."""
    return layout.instances / f".probe-{hashlib.sha256(token.encode()).hexdigest()}"


def _rename(old: Path, new: Path, operation: str) -> None:
    try:
        old.rename(new)
    except FileNotFoundError as error:
        raise _fault(f"{old} is not there", "no_disk", operation) from error


def _fault(message: str, code: str, operation: str) -> HypervisorFault:
    return HypervisorFault(message, operation=operation, code=code)
