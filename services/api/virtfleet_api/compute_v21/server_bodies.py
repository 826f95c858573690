"""The bodies of requests about servers, and what a create becomes."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from virtfleet_common.errors import BadRequest

from virtfleet_api.create import CreateRequest
from virtfleet_api.validation import Body, Flag, Metadata, Name, Whole

Tag = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^,/]+$")]
Tags = Annotated[list[Tag], Field(max_length=50)]
Description = Annotated[str, Field(max_length=255)]
_BRIDGE = "bridge:"


class Network(Body):
    """One network card. `uuid` is the name of a libvirt network, or `bridge:NAME` for a bridge on the host."""

    uuid: Annotated[str, Field(min_length=1, max_length=64)]


class BootDevice(Body):
    """The one block device that is taken: the image, onto a local disk. OSC sends it beside `imageRef`."""

    uuid: str
    source_type: Literal["image"]
    destination_type: Literal["local"]
    boot_index: Whole = 0
    delete_on_termination: Flag = True


class SecurityGroup(Body):
    """There are no security groups but the name `default`, which filters nothing."""

    name: Literal["default"]


class NewServer(Body):
    """What is to be created."""

    SINCE: ClassVar[Mapping[str, int]] = {"description": 19, "tags": 52}

    name: Name
    flavor: Annotated[str | int, Field(alias="flavorRef")]
    image: Annotated[str | None, Field(alias="imageRef")] = None
    networks: list[Network] | Literal["none", "auto"] | None = None
    metadata: Metadata = Field(default_factory=dict)
    min_count: Annotated[Whole, Field(ge=1)] = 1
    max_count: Annotated[Whole, Field(ge=1)] | None = None
    return_reservation_id: Flag = False
    block_devices: list[BootDevice] = Field(default_factory=list, alias="block_device_mapping_v2", max_length=1)
    security_groups: list[SecurityGroup] = Field(default_factory=list)
    availability_zone: str | None = None
    description: Description | None = None
    tags: Tags = Field(default_factory=list)
    admin_pass: Annotated[str | None, Field(alias="adminPass")] = None
    disk_config: Annotated[Literal["AUTO", "MANUAL"] | None, Field(alias="OS-DCF:diskConfig")] = None
    config_drive: Literal[False, "", "false", "False"] | None = None


Hints = dict[str, Any]


class CreateServer(Body):
    """`POST /servers`"""

    server: NewServer
    hints: Hints = Field(default_factory=dict, alias="os:scheduler_hints")
    older_hints: Hints = Field(default_factory=dict, alias="OS-SCH-HNT:scheduler_hints")

    def request(self, version: int) -> CreateRequest:
        """This body for the acceptor. Raises BadRequest."""
        new = self.server
        if new.networks is None and version >= 37:
            raise BadRequest("'networks' is a required property of 'server'.", rule="body.schema")
        most = new.min_count if new.max_count is None else new.max_count
        if new.min_count > most:
            raise BadRequest("min_count must be <= max_count", rule="counts")
        return CreateRequest(
            name=new.name.strip(),
            flavor=str(new.flavor).rstrip("/").rsplit("/", 1)[-1],
            image=_image(new),
            min_count=new.min_count,
            max_count=most,
            metadata=new.metadata,
            networks=_networks(new.networks),
            hints=_hints(self.hints | self.older_hints),
            availability_zone=new.availability_zone,
            description=new.description,
            tags=new.tags,
        )


def _hints(asked: Hints) -> Hints:
    """The hints; a group may come as the one entry of a list."""
    group = asked.get("group")
    return asked | {"group": group[0]} if isinstance(group, list) and len(group) == 1 else asked


def _image(new: NewServer) -> str | None:
    """The image's id; a client may name it by its address, and again in the block device mapping."""
    named = new.image.rstrip("/").rsplit("/", 1)[-1] if new.image else None
    mapped = new.block_devices[0].uuid if new.block_devices else None
    if named and mapped and named != mapped:
        message = f"Block Device Mapping is Invalid: imageRef is {named}, and the boot device is image {mapped}."
        raise BadRequest(message, rule="block_devices")
    return named or mapped


def _networks(asked: list[Network] | str | None) -> list[dict[str, str | None]]:
    """`auto`, and nothing said before 2.37, mean no network: there is none that could be had without naming it."""
    if asked is None or isinstance(asked, str):
        return []
    return [_network(one.uuid) for one in asked]


def _network(name: str) -> dict[str, str | None]:
    if name.startswith(_BRIDGE):
        return {"bridge": name.removeprefix(_BRIDGE)}
    return {"network": name}


class ServerChange(Body):
    """What may be changed of a server at any time."""

    SINCE: ClassVar[Mapping[str, int]] = {"description": 19}

    name: Name | None = None
    description: Description | None = None
    disk_config: Annotated[Literal["AUTO", "MANUAL"] | None, Field(alias="OS-DCF:diskConfig")] = None


class UpdateServer(Body):
    """`PUT /servers/{id}`"""

    server: ServerChange


class MetadataBody(Body):
    """`POST` and `PUT /servers/{id}/metadata`"""

    metadata: Metadata


class MetaItemBody(Body):
    """`PUT /servers/{id}/metadata/{key}`"""

    meta: Annotated[Metadata, Field(min_length=1, max_length=1)]


class TagsBody(Body):
    """`PUT /servers/{id}/tags`; null changes nothing (Ansible sends it when its user named no tags)."""

    tags: Tags | None
