"""What a local fleet is made of: its files, its services, and the environment each of them is given."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from virtfleet_local.hosts import boot_file, host_folder, hypervisor_root, shared_folder

HypervisorKind = Literal["qemu", "test"]
SINGLE_SERVICES = {
    "api": "virtfleet_api.service",
    "scheduler": "virtfleet_scheduler.service",
    "power-sync": "virtfleet_power_sync.service",
}
AGENT_MODULE = "virtfleet_compute_agent.service"
Extra = Mapping[str, Mapping[str, str]]


class FleetFile(BaseModel):
    """`fleet.json`: how to reach the fleet that runs from this folder. It holds secrets (mode 0600)."""

    api_url: str
    amqp_url: str
    mongodb_url: str
    token: str
    member_token: str
    other_member_token: str
    member_amqp_url: str
    other_member_amqp_url: str
    hosts: list[str]
    hypervisor: HypervisorKind
    shared_storage: bool = False
    replicas: dict[str, int] = {}
    ports: dict[str, int]
    env: dict[str, dict[str, str]] = {}
    pids: dict[str, int] = {}

    def write(self, path: Path) -> None:
        """Write it whole: a reader sees the old file or the new one, and only the owner may read."""
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(self.model_dump_json(indent=2) + "\n")
        new.replace(path)

    @classmethod
    def read(cls, path: Path) -> "FleetFile | None":
        """The fleet of this folder; None when none was started, or the file is not one this version wrote."""
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the fleet: its name, kind (`api`, `scheduler`, `power-sync`, `agent`) and Python module."""

    name: str
    kind: str
    module: str


def services(hosts: Iterable[str], replicas: Mapping[str, int]) -> list[Service]:
    """Every service process: the three kinds (a second replica is called `scheduler-2`), and an agent per host."""
    single = [
        Service(kind if number == 1 else f"{kind}-{number}", kind, module)
        for kind, module in SINGLE_SERVICES.items()
        for number in range(1, replicas.get(kind, 1) + 1)
    ]
    return [*single, *(Service(host, "agent", AGENT_MODULE) for host in hosts)]


def host_names(count: int) -> list[str]:
    """`host-1` to `host-<count>`."""
    return [f"host-{number}" for number in range(1, count + 1)]


def environment(service: Service, file: FleetFile, data: Path) -> dict[str, str]:
    """The environment of a service: the fleet's addresses, its own port, and what the fleet was told to add.

    Additions are by `*`, then by kind, then by name; the more particular one counts.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VIRTFLEET_")}
    common = {
        "VIRTFLEET_MONGODB_URL": file.mongodb_url,
        "VIRTFLEET_AMQP_URL": file.amqp_url,
        "VIRTFLEET_API_PORT" if service.kind == "api" else "VIRTFLEET_HEALTH_PORT": str(file.ports[service.name]),
        "PYTHONUNBUFFERED": "1",
        # glibc gives every thread a heap of its own; two are enough, and save tens of MiB in each process.
        "MALLOC_ARENA_MAX": "2",
    }
    own = _agent_environment(service.name, file, data) if service.kind == "agent" else {}
    for key in ("*", service.kind, service.name):
        own = own | file.env.get(key, {})
    return inherited | common | own


def _agent_environment(host: str, file: FleetFile, data: Path) -> dict[str, str]:
    root = hypervisor_root(data, host)
    shared = {"VIRTFLEET_INSTANCES_DIR": str(shared_folder(data))} if file.shared_storage else {}
    return {
        **shared,
        "VIRTFLEET_HOST": host,
        "VIRTFLEET_STATE_DIR": str(host_folder(data, host)),
        "VIRTFLEET_MACHINE_BOOT_FILE": str(boot_file(data, host)),
        "VIRTFLEET_VIRT_TYPE": "qemu",
        "VIRTFLEET_RESERVED_RAM_MB": "64",
        "VIRTFLEET_HYPERVISOR_URI": f"qemu:///embed?root={root}" if file.hypervisor == "qemu" else "test:///default",
    }
