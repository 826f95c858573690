"""Where a host keeps its files: one folder per instance, one cache of base images named by what is in them."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from virtfleet_common.errors import HypervisorFault, ImageFault
from virtfleet_common.records import Image, Instance

_CHECKSUM = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Source:
    """A file to have in the cache. `checksum` is its SHA-256 in hex; None: the catalogue does not know it."""

    location: str
    checksum: str | None

    @property
    def cache_name(self) -> str:
        """The content names a verified file; an unverified one can only be named by where it came from."""
        return self.checksum or "unverified-" + hashlib.sha256(self.location.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths under one `state_dir`; what belongs to instances lies in `instances_dir`, which hosts may share."""

    state_dir: Path
    instances_dir: Path | None = None

    @property
    def images(self) -> Path:
        """The cache of base images, kernels and initial RAM disks."""
        return self.state_dir / "images"

    def cached(self, source: Source) -> Path:
        """The file of the cache that holds `source` once it is fetched."""
        return self.images / source.cache_name

    @property
    def instances(self) -> Path:
        """The folder of the instances' folders."""
        return self.instances_dir or self.state_dir / "instances"

    def instance(self, instance_id: str) -> Path:
        """The instance's own folder. Raises HypervisorFault on an id that is no UUID, for it could name any path."""
        return self.instances / _checked(instance_id)

    def aside(self, instance_id: str) -> Path:
        """The folder, while the instance moves away and until that is confirmed."""
        return self.instances / f"{_checked(instance_id)}_resize"

    def incoming(self, instance_id: str, token: str) -> Path:
        """The disk that another host sends, until it is whole. Hosts that share this folder have one for each
        transfer, so that none takes another's away."""
        return self.instances / f"{_checked(instance_id)}_incoming-{hashlib.sha256(token.encode()).hexdigest()[:16]}"

    def export(self, instance_id: str) -> Path:
        """What this host knows of its export for the instance; not where hosts may share."""
        return self.state_dir / "exports" / _checked(instance_id)

    def transfer(self, instance_id: str) -> Path:
        """The key that this host sends the instance's disk with; not where hosts may share."""
        return self.state_dir / "transfers" / _checked(instance_id)

    def transfer_note(self, instance_id: str) -> Path:
        """What this host sent where, last."""
        return self.transfer(instance_id).with_suffix(".json")

    def disk_aside(self, instance_id: str) -> Path:
        """The root disk of an instance that moves away."""
        return self.aside(instance_id) / "disk"

    def disk(self, instance_id: str) -> Path:
        """The instance's root disk, a qcow2 image."""
        return self.instance(instance_id) / "disk"

    def console(self, instance_id: str) -> Path:
        """The log that the guest's serial console is written to."""
        return self.instance(instance_id) / "console.log"


def _checked(instance_id: str) -> str:
    try:
        is_canonical = str(UUID(instance_id)) == instance_id
    except ValueError:
        is_canonical = False
    if not is_canonical:
        raise HypervisorFault(f"{instance_id!r} is not an instance id", operation="layout", code="bad_instance_id")
    return instance_id


def has_root_disk(instance: Instance) -> bool:
    """Whether the instance has a disk of its own; one that boots from a volume (`boot_index` 0) has none."""
    return instance.image is not None or all(one.get("boot_index") != 0 for one in instance.block_devices)


def base_of(image: Image | None) -> Source | None:
    """The file that the root disk lies over; None when it starts empty. Raises ImageFault on a bad checksum."""
    return _source(image.location, image.checksum) if image is not None and image.location else None


def kernel_of(image: Image | None) -> Source | None:
    """The kernel that the guest is booted with directly; None: it boots from its disk."""
    return _property_source(image, "kernel")


def initrd_of(image: Image | None) -> Source | None:
    """The initial RAM disk that goes with the kernel, if any."""
    return _property_source(image, "initrd") if kernel_of(image) else None


def sources_of(image: Image) -> list[Source]:
    """Every file that a guest of `image` needs."""
    return [source for source in (base_of(image), kernel_of(image), initrd_of(image)) if source is not None]


def _property_source(image: Image | None, name: str) -> Source | None:
    location = image.properties.get(name) if image is not None else None
    if image is None or not location:
        return None
    return _source(location, image.properties.get(f"{name}_checksum"))


def _source(location: str, checksum: str | None) -> Source:
    if not checksum:
        return Source(location, None)
    match = _CHECKSUM.fullmatch(checksum)
    if match is None:
        raise ImageFault(f"{checksum!r} is not sha256:<64 hex digits>", location=location)
    return Source(location, match[1])
