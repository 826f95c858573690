"""What instances are made from: sizes and images."""

from collections.abc import Mapping
from datetime import datetime

from pydantic import Field

from virtfleet_common.records.base import Record


class Flavor(Record):
    """A size: vCPUs, MiB of RAM, GiB of disk. An instance keeps its own copy, so a deleted flavor harms nobody."""

    id: str = Field(alias="_id")
    name: str
    vcpus: int = Field(ge=1)
    ram_mb: int = Field(ge=1)
    disk_gb: int = Field(ge=0, default=0)
    is_public: bool = True
    is_disabled: bool = False
    description: str | None = None
    extra_specs: Mapping[str, str] = {}


class Image(Record):
    """A catalogue entry. `checksum` is `sha256:<hex>` of the file at `location` (a path, `file:` or `http(s):` URL)."""

    id: str = Field(alias="_id")
    name: str
    location: str
    checksum: str
    disk_format: str = "qcow2"
    size: int = 0
    min_disk_gb: int = 0
    min_ram_mb: int = 0
    visibility: str = "public"
    project_id: str | None = None
    properties: Mapping[str, str] = {}
    created_at: datetime
    updated_at: datetime
