"""How a call gets to libvirt and to files: on a thread, with a deadline, its failure named."""

from collections.abc import Callable
from typing import TypeVar

import libvirt
from virtfleet_common import failpoints
from virtfleet_common.errors import HypervisorFault
from virtfleet_common.settings import AgentSettings

from virtfleet_compute_agent.hypervisor.connection import Connection
from virtfleet_compute_agent.hypervisor.layout import Layout
from virtfleet_compute_agent.hypervisor.pool import Pool

T = TypeVar("T")
_FILE_WORKERS = 4


class HostCalls:
    """One host's connection and files, and the threads on which they are used."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._connection = Connection(settings.hypervisor_uri)
        own = settings.instances_dir
        self._layout = Layout(settings.state_dir.absolute(), own.absolute() if own is not None else None)
        self._steps = Pool("libvirt", settings.libvirt_workers)
        self._listing = Pool("listing", 1)
        self._files = Pool("files", _FILE_WORKERS)

    @property
    def is_responsive(self) -> bool:
        """False while calls that passed their deadline hold every thread for steps, or the one for listings."""
        return not (self._steps.is_stuck or self._listing.is_stuck)

    async def _call(self, operation: str, work: Callable[[], T], timeout: float | None = None) -> T:
        """Run libvirt calls on a thread for steps. Raises HypervisorFault, HypervisorTimeout."""
        return await self._steps.run(
            self._guarded(operation, work), timeout or self._settings.libvirt_timeout, operation
        )

    async def _file_call(self, operation: str, work: Callable[[], T]) -> T:
        """Run file work on a thread of its own kind: a dead file server must not hold the threads for libvirt."""
        return await self._files.run(self._guarded(operation, work), self._settings.libvirt_timeout, operation)

    @staticmethod
    def _guarded(operation: str, work: Callable[[], T]) -> Callable[[], T]:
        def guarded() -> T:
            failpoints.reach(f"hypervisor.{operation}")
            try:
                return work()
            except libvirt.libvirtError as error:
                code = error.get_error_code()
                raise HypervisorFault(str(error), operation=operation, code=code) from error
            except OSError as error:
                raise HypervisorFault(str(error), operation=operation, code=error.errno or 0) from error

        return guarded

    def _find(self, instance_id: str) -> libvirt.virDomain | None:
        try:
            return self._connection.get().lookupByUUIDString(instance_id)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _get(self, instance_id: str) -> libvirt.virDomain:
        return self._connection.get().lookupByUUIDString(instance_id)

    def _refuse_running(self, instance_id: str, operation: str) -> None:
        domain = self._find(instance_id)
        if domain is not None and domain.isActive():
            raise HypervisorFault("the guest runs", operation=operation, code="running")
