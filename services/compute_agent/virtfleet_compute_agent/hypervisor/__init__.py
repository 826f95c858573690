"""The hypervisor port on real libvirt: QEMU by the daemon or in this process, or libvirt's test driver."""

from virtfleet_compute_agent.hypervisor.libvirt_driver import LibvirtHypervisor

__all__ = ["LibvirtHypervisor"]
