"""Reading guests from libvirt: states in bulk, and the marks Virtfleet left in their metadata from memory. Blocking."""

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt
from virtfleet_common.ports import Guest
from virtfleet_common.states import PowerState

from virtfleet_compute_agent.hypervisor.domain_xml import NAMESPACE, Mark, parse_mark


class GuestReader:
    """Knows each guest's mark from when it was defined or first seen, so that an unchanged listing reads no XML.

    Only this process defines guests of ours, so a remembered mark is true until it is replaced or forgotten. Safe for
    threads: a reader never overwrites a mark that `remember` set meanwhile.
    """

    def __init__(self) -> None:
        self._marks: dict[str, Mark | None] = {}

    def remember(self, instance_id: str, mark: Mark) -> None:
        """What the guest was just defined with."""
        self._marks[instance_id] = mark

    def forget(self, instance_id: str) -> None:
        """The guest is no longer defined."""
        self._marks.pop(instance_id, None)

    def read(self, domain: libvirt.virDomain) -> Guest:
        """One guest as it is now."""
        state = PowerState(domain.state()[0])
        has_save = not domain.isActive() and bool(domain.hasManagedSaveImage())
        return self._guest(domain, state, has_save)

    def list_all(self, live: libvirt.virConnect) -> list[Guest]:
        """Every guest. Waits for none of them: a guest whose monitor hangs still has a state."""
        nowait = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        rows = live.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, nowait)
        saved = {domain.UUID() for domain in live.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)}
        guests = []
        for domain, stats in rows:
            state = PowerState(stats.get("state.state", PowerState.NOSTATE))
            with _unless_gone():
                guests.append(self._guest(domain, state, domain.UUID() in saved))
        return guests

    def _guest(self, domain: libvirt.virDomain, state: PowerState, has_save: bool) -> Guest:
        instance_id = domain.UUIDString()
        mark = self._mark(instance_id, domain)
        number = domain.ID()  # of when it was looked up: it may have been switched off since
        return Guest(
            instance_id=instance_id,
            power_state=state,
            domain_id=number if number >= 0 and state is not PowerState.SHUTOFF else None,
            epoch=mark.epoch if mark else 0,
            action_id=mark.action_id if mark else None,
            is_ours=mark is not None,
            has_managed_save=has_save,
        )

    def _mark(self, instance_id: str, domain: libvirt.virDomain) -> Mark | None:
        if instance_id in self._marks:
            return self._marks[instance_id]
        return self._marks.setdefault(instance_id, _read_mark(domain))


@contextmanager
def _unless_gone() -> Iterator[None]:
    """A guest that went away while it was being read is not in the listing."""
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def _read_mark(domain: libvirt.virDomain) -> Mark | None:
    """The mark in the definition (not in the running guest, which a later definition does not touch)."""
    where = libvirt.VIR_DOMAIN_AFFECT_CONFIG if domain.isPersistent() else libvirt.VIR_DOMAIN_AFFECT_CURRENT
    try:
        return parse_mark(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE, where))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
