"""Which hosts share this one's storage: each leaves its mark there for good, and who sees it there shares it."""

from virtfleet_common.ports import Hypervisor
from virtfleet_common.store import Store


class Storage:
    """The instances' directories of one host."""

    def __init__(self, store: Store, hypervisor: Hypervisor) -> None:
        self._store = store
        self._hypervisor = hypervisor

    async def leave_mark(self, uuid: str) -> None:
        """Have the mark of this host, whose identity `uuid` is."""
        await self._hypervisor.probe_shared(_mark_of(uuid))

    async def is_shared_with(self, host: str | None) -> bool | None:
        """Whether the disks of another host are here too; None for a host that the record does not know. Raises Faulty
        when nobody can tell."""
        found = await self._store.hosts.get_brief(host) if host is not None else None
        return None if found is None else await self._hypervisor.sees_probe(_mark_of(found.uuid))


def _mark_of(uuid: str) -> str:
    return f"host:{uuid}"
