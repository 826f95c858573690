"""The connection to libvirt: opened with what its URI needs, mended when the daemon was restarted. Blocking calls."""

import fcntl
import os
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import libvirt
from virtfleet_common.errors import HypervisorFault

from virtfleet_compute_agent.hypervisor import orphans
from virtfleet_compute_agent.hypervisor.events import EventHub, start_event_loop

_KVM_CREATE_VM = 0xAE01
_KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 5, 3  # seconds, missed answers
_EMBED_CONFIG = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
security_driver = "none"
stdio_handler = "file"
"""


class Connection:
    """One libvirt connection, shared by all threads; libvirt allows that."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.is_simulated = urlsplit(uri).scheme.partition("+")[0] == "test"
        self._hub: EventHub | None = None
        self._live: libvirt.virConnect | None = None
        self._subscription: int | None = None
        self._lock = threading.Lock()

    def open(self, hub: EventHub) -> None:
        """Connect and have lifecycle events go to `hub`."""
        libvirt.registerErrorHandler(_keep_quiet, None)
        start_event_loop()
        self._hub = hub
        self.get()

    def get(self) -> libvirt.virConnect:
        """The live connection; a dead one (the daemon was restarted) is replaced first."""
        live = self._live
        if live is not None and live.isAlive():
            return live
        with self._lock:
            if self._live is None or not self._live.isAlive():
                self._live = self._connect()
            return self._live

    def close(self) -> None:
        """Let go. libvirt frees the connection when its last object is gone."""
        with self._lock:
            live, self._live, self._hub = self._live, None, None
            subscription, self._subscription = self._subscription, None
        if live is None:
            return
        if subscription is not None:  # it would keep the connection, and with it the test driver's guests
            live.domainEventDeregisterAny(subscription)
        live.close()

    def _connect(self) -> libvirt.virConnect:
        if self._hub is None:
            raise HypervisorFault("the connection is not open", operation="open", code="closed")
        root = embed_root(self.uri)
        if root is not None:
            write_embed_config(root)
            orphans.adopt()
        live = libvirt.open(self.uri)
        if not self.is_simulated and root is None:
            live.setKeepAlive(_KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT)
        lifecycle = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        self._subscription = live.domainEventRegisterAny(None, lifecycle, self._hub.on_lifecycle, None)
        if self.uri == "test:///default":
            _forget_example(live)
        return live


def embed_root(uri: str) -> Path | None:
    """The root folder of a driver that runs inside this process; None for any other URI."""
    parts = urlsplit(uri)
    roots = parse_qs(parts.query).get("root", [])
    return Path(roots[0]) if parts.path == "/embed" and roots else None


def write_embed_config(root: Path) -> None:
    """Have QEMU run as this user, unconfined, and outlive this process: without a daemon nobody else watches it."""
    config = root / "etc" / "qemu.conf"
    if config.exists():
        return
    config.parent.mkdir(parents=True, exist_ok=True)
    part = config.with_suffix(".part")
    part.write_text(_EMBED_CONFIG)
    part.replace(config)


def is_kvm_usable() -> bool:
    """Whether this process can make a KVM virtual machine. That `/dev/kvm` exists proves nothing."""
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
    except OSError:
        return False
    finally:
        os.close(device)
    return True


def _forget_example(live: libvirt.virConnect) -> None:
    """The test driver starts with a running domain called `test`, which is nobody's guest."""
    for domain in live.listAllDomains():
        if domain.name() == "test":
            if domain.isActive():
                domain.destroy()
            domain.undefine()


def _keep_quiet(_context: object, _error: object) -> None:
    """libvirt prints every error to stderr by default; ours are raised."""
