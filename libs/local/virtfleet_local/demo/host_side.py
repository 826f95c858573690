"""A look at the hypervisors themselves, past everything that the fleet says of them: processes and files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import psutil

from virtfleet_local.hosts import guests, host_folder, hypervisor_root

_DOMAIN = re.compile(r"/domain-(\d+)-")
_MARK = ".//{https://virtfleet.dev/xmlns/domain/1}instance"


@dataclass(frozen=True, slots=True)
class RunningGuest:
    """A QEMU process, and the id that libvirt gave to this run of its domain."""

    pid: int
    domain_id: int


def running(data: Path, instance_id: str, host: str = "") -> list[RunningGuest]:
    """Every process of the guest, on one host or on any: more than one would be a disaster."""
    found = (_read(process, instance_id) for process in guests(data, host))
    return [guest for guest in found if guest is not None]


def defined_by(data: Path, host: str, instance_id: str) -> str | None:
    """The action that defined the guest, as the metadata of its domain XML says; None if there is no such domain."""
    definition = hypervisor_root(data, host) / "etc" / "qemu" / f"vf-{instance_id}.xml"
    try:
        mark = ElementTree.fromstring(definition.read_text()).find(_MARK)
    except (OSError, ElementTree.ParseError):
        return None
    return None if mark is None else mark.get("action")


def files_of(data: Path, instance_ids: Iterable[str], host: str = "") -> list[Path]:
    """Every file and folder on one host, or on any, that is named after one of the guests; libvirt's own logs are its
    to keep."""
    found = [path for id_ in instance_ids for path in host_folder(data, host).rglob(f"*{id_}*")]
    return [path for path in found if "log" not in path.relative_to(data).parts]


def _read(process: psutil.Process, instance_id: str) -> RunningGuest | None:
    try:
        words = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return None
    number = _DOMAIN.search(words)
    return RunningGuest(process.pid, int(number[1])) if number and instance_id in words else None
