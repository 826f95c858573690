"""A disk on its way to another host: sent, received, set aside, seen from both. Simulated hosts have none."""

from virtfleet_common.ports import Export
from virtfleet_common.records import Instance
from virtfleet_common.settings import AgentSettings

from virtfleet_compute_agent.hypervisor import aside, disks
from virtfleet_compute_agent.hypervisor.exports import Exports, nowhere
from virtfleet_compute_agent.hypervisor.host_calls import HostCalls
from virtfleet_compute_agent.hypervisor.images import ImageCache
from virtfleet_compute_agent.hypervisor.layout import has_root_disk
from virtfleet_compute_agent.hypervisor.transfer import Report, Sender


class DiskMoves(HostCalls):
    """The part of the `Hypervisor` port that is about disks which move."""

    def __init__(self, settings: AgentSettings) -> None:
        super().__init__(settings)
        self._images = ImageCache(self._layout, self._files, settings.action_timeout)
        self._disks = disks.Disks(self._layout, self._images, settings.action_timeout)
        self._exports = Exports(self._layout, settings, self._files)
        self._sender = Sender(self._layout, settings)

    async def open_export(self, instance: Instance, token: str) -> Export:
        """Wait for the instance's disk, apart from this process."""
        if self._connection.is_simulated:
            return nowhere(token)
        return await self._exports.open(instance, token)

    async def close_export(
        self, instance_id: str, *, adopt: bool, size_bytes: int = 0, token: str | None = None
    ) -> None:
        """Listen no longer; keep what arrived, or not."""
        if not self._connection.is_simulated:
            await self._exports.close(instance_id, adopt=adopt, size=size_bytes, token=token)

    async def send_disk(self, instance: Instance, export: Export, on_progress: Report | None = None) -> int:
        """Send what was set aside; its size in bytes, 0 when the instance has no disk of its own."""
        if self._connection.is_simulated or not has_root_disk(instance):
            return 0
        plan = await self._file_call("send_disk", lambda: self._sender.prepare(instance.id, export))
        await self._sender.send(plan, on_progress)
        return plan.size

    async def set_aside(self, instance_id: str) -> None:
        """Keep the instance's folder under another name. Refused while the guest runs."""
        await self._call("set_aside", lambda: self._refuse_running(instance_id, "set_aside"))
        if not self._connection.is_simulated:
            await self._file_call("set_aside", lambda: aside.set_aside(self._layout, instance_id))

    async def put_back(self, instance_id: str) -> None:
        """Give the folder its name again, once nobody copies from it."""
        if not self._connection.is_simulated:
            await self._file_call("put_back", lambda: self._sender.stop(instance_id))
            await self._file_call("put_back", lambda: aside.put_back(self._layout, instance_id))

    async def remove_aside(self, instance_id: str) -> None:
        """Delete what was set aside."""
        if not self._connection.is_simulated:
            await self._file_call("remove_aside", lambda: self._sender.forget(instance_id))
            await self._file_call("remove_aside", lambda: aside.remove_aside(self._layout, instance_id))

    async def probe_shared(self, token: str) -> None:
        """Leave a file for the source to see, if it shares this host's storage."""
        if not self._connection.is_simulated:
            await self._file_call("probe_shared", lambda: aside.leave_probe(self._layout, token))

    async def sees_probe(self, token: str) -> bool:
        """Whether the destination's file shows here; always on a simulated host, which has nothing to send."""
        if self._connection.is_simulated:
            return True
        return await self._file_call("sees_probe", lambda: aside.sees_probe(self._layout, token))

    async def remove_probe(self, token: str) -> None:
        """Take the file away."""
        if not self._connection.is_simulated:
            await self._file_call("remove_probe", lambda: aside.remove_probe(self._layout, token))

    async def grow_disk(self, instance: Instance) -> None:
        """Have the disk as large as the flavor says."""
        if not self._connection.is_simulated:
            await self._disks.grow(instance)
