"""Volumes as the store keeps them: where the data lies, and which instance has it.

The keys of a storage stay in libvirt on the hosts; a source names them by the UUID of a libvirt secret.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from virtfleet_common.records.base import Record

HostName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\w.:-]+$")]
Port = Annotated[int, Field(ge=1, le=65535)]
User = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^\S+$")]
FullPath = Annotated[str, Field(max_length=4096, pattern=r"^/[^\x00-\x1f]+$")]
SecretId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]


class Source(BaseModel):
    """Where a volume's data lies. Unknown fields are refused: what is half understood must not be attached."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GuardedSource(Source):
    """A storage that may ask who comes: `user`, and the libvirt secret (its UUID) that holds the key on every host."""

    user: User | None = None
    secret_uuid: SecretId | None = None

    @model_validator(mode="after")
    def _have_both(self) -> Self:
        if (self.user is None) != (self.secret_uuid is None):
            raise PydanticCustomError("user_and_secret", "user and secret_uuid go together")
        return self


class FileSource(Source):
    """A file that the hosts see at the same path; one that only one host has ties its instance to that host."""

    type: Literal["file"]
    path: FullPath
    format: Literal["raw", "qcow2"] = "raw"


class BlockSource(Source):
    """A block device that the hosts see at the same path (a SAN's multipath device, a local logical volume)."""

    type: Literal["block"]
    path: FullPath


class Monitor(Source):
    """One monitor of a Ceph cluster."""

    name: HostName
    port: Port | None = None


class RbdSource(GuardedSource):
    """An image of a Ceph pool; the secret's usage is `ceph`."""

    type: Literal["rbd"]
    pool: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/@\s]+$")]
    image: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^/@\s]+$")]
    hosts: Annotated[list[Monitor], Field(min_length=1, max_length=16)]


class IscsiSource(GuardedSource):
    """A unit of an iSCSI target; the secret's usage is `iscsi`, its value the CHAP password."""

    type: Literal["iscsi"]
    iqn: Annotated[str, Field(max_length=223, pattern=r"^(iqn|eui|naa)\.[\w.:-]+$")]
    lun: Annotated[int, Field(ge=0, le=16383)] = 0
    host: HostName
    port: Port = 3260


AnySource = Annotated[FileSource | BlockSource | RbdSource | IscsiSource, Field(discriminator="type")]


class Attachment(Record):
    """A volume's hold by one instance. `id` names it for good; `ticket` the try that reserved it last.

    `attached_at` None: reserved by an attach that has not ended. `rank` is the instance's `rev` at the transition that
    `host`, `device` and `attached_at` come from, so that what is written late takes nothing back.
    """

    id: str
    instance_id: str
    host: str | None = None
    device: str
    ticket: str = ""
    reserved_at: datetime
    attached_at: datetime | None = None
    rank: int = 0


class Volume(Record):
    """A disk that lives apart from instances, and is attached to one at most."""

    id: str = Field(alias="_id")
    name: str
    description: str | None = None
    project_id: str
    user_id: str
    size_gb: int = Field(ge=0)
    source: AnySource
    is_readonly: bool = False
    attachment: Attachment | None = None
    created_at: datetime
    updated_at: datetime

    @property
    def status(self) -> str:
        """Cinder's word for it."""
        if self.attachment is None:
            return "available"
        return "in-use" if self.attachment.attached_at else "attaching"

    def document(self) -> dict[str, Any]:
        """This record as a MongoDB document; a source has no more fields than it was given."""
        return super().document() | {"source": self.source.model_dump(exclude_none=True)}
