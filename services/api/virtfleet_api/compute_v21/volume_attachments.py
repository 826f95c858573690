"""`/servers/{id}/os-volume_attachments`: which volumes a server has; attach and detach, accepted like any action."""

from typing import Annotated, ClassVar, Literal
from uuid import UUID

from pydantic import AfterValidator, Field
from starlette.responses import Response
from virtfleet_common import volumes
from virtfleet_common.errors import NotFound
from virtfleet_common.records import Instance
from virtfleet_common.volumes import Device

from virtfleet_api import attach
from virtfleet_api.answers import answer, empty
from virtfleet_api.compute_v21.shapes import Shape, cut
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body

_PATH = "/servers/{id}/os-volume_attachments"
VolumeId = Annotated[str, AfterValidator(lambda text: str(UUID(text)))]


class NewAttachment(Body):
    """Which volume, and under which name in the guest. A volume outlives its server here, always."""

    SINCE: ClassVar = {"delete_on_termination": 79}

    volume_id: Annotated[VolumeId, Field(alias="volumeId")]
    device: Annotated[str, Field(max_length=255)] | None = None
    delete_on_termination: Literal[False] = False


class AttachVolume(Body):
    """`POST /servers/{id}/os-volume_attachments`"""

    attachment: Annotated[NewAttachment, Field(alias="volumeAttachment")]


def view(server: Instance, device: Device, version: int) -> Shape:
    """One attachment."""
    shape: Shape = {
        "id": device["id"],
        "volumeId": device["id"],
        "serverId": server.id,
        "device": f"/dev/{device['target']}",
    }
    fields = {"tag": (70, None), "delete_on_termination": (79, False)}
    return shape | {name: value for name, (since, value) in fields.items() if version >= since}


async def list_attachments(call: Call) -> Response:
    """The volumes that a server has."""
    server = await call.services.acceptor.find(call.who, call.param("id"))
    devices = [device for device in volumes.present(server) if device.get("id")]
    page = devices[cut([device["id"] for device in devices], call)]
    return answer({"volumeAttachments": [view(server, device, call.version) for device in page]})


async def show_attachment(call: Call) -> Response:
    """One of them."""
    server = await call.services.acceptor.find(call.who, call.param("id"))
    device = attach.attached(server, call.param("volume_id"))
    return answer({"volumeAttachment": view(server, device, call.version)})


async def attach_volume(call: Call) -> Response:
    """Attach a volume; it is there once the server's task is over."""
    asked = (await call.read(AttachVolume)).attachment
    args = {"volume_id": asked.volume_id, "device": asked.device}
    server = await call.services.acceptor.act(
        call.who, call.param("id"), "attach_volume", args, action_id=call.request_id
    )
    if server.action is None:
        raise NotFound(f"Instance {server.id} is not attached to volume {asked.volume_id}", rule="volume_attached")
    return answer({"volumeAttachment": view(server, server.action.step.args["device"], call.version)})


async def detach_volume(call: Call) -> Response:
    """Detach a volume."""
    args = {"volume_id": call.param("volume_id")}
    await call.services.acceptor.act(call.who, call.param("id"), "detach_volume", args, action_id=call.request_id)
    return empty(202)


ENDPOINTS = (
    Endpoint("GET", _PATH, list_attachments, "read"),
    Endpoint("POST", _PATH, attach_volume, "volumes:attach", body=AttachVolume),
    Endpoint("GET", _PATH + "/{volume_id}", show_attachment, "read"),
    Endpoint("DELETE", _PATH + "/{volume_id}", detach_volume, "volumes:attach"),
)
