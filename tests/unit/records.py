"""Records to think with."""

from datetime import UTC, datetime
from typing import Any

from virtfleet_common.records import Flavor, Host, Instance, Resources
from virtfleet_common.states import PowerState, VmState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FLAVOR = Flavor(id="1", name="m1.tiny", vcpus=1, ram_mb=512, disk_gb=1)


def an_instance(vm_state: VmState = VmState.ACTIVE, power: PowerState = PowerState.RUNNING, **more: Any) -> Instance:
    """An instance at rest on host-1."""
    fields = {"host": "host-1", "created_at": NOW, "updated_at": NOW, **more}
    return Instance(
        id="i-1",
        name="guest",
        project_id="p",
        user_id="u",
        vm_state=vm_state,
        power_state=power,
        flavor=FLAVOR,
        **fields,
    )


def a_host(name: str = "host-1", **more: Any) -> Host:
    """A host that is up and empty."""
    room = Resources(vcpus=16, ram_mb=16384, disk_gb=100)
    known = {"uuid": f"uuid-{name}", "boot_id": "boot", "last_seen": NOW, "limits": room, "free": room}
    return Host(id=name, **{**known, **more})
