"""Every message, as a frozen model: what its data holds. On the wire each is a CloudEvent in AMQP binary mode.

Commands are imperative and refuse unknown fields; events tell what happened and ignore unknown fields, so that old
subscribers understand new services. `COMMANDS` names the command models by their routing key.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from virtfleet_common.states import PowerState


class Command(BaseModel):
    """An order: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Event(BaseModel):
    """A fact: unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class InstanceCommand(Command):
    """A command about one instance."""

    instance_id: str


class RebootInstance(InstanceCommand):
    """`instance.reboot`: SOFT asks the guest, HARD pulls the plug."""

    type: Literal["SOFT", "HARD"] = "SOFT"


class StartInstance(InstanceCommand):
    """`instance.start`"""


class StopInstance(InstanceCommand):
    """`instance.stop`"""


class PauseInstance(InstanceCommand):
    """`instance.pause`"""


class UnpauseInstance(InstanceCommand):
    """`instance.unpause`"""


class SuspendInstance(InstanceCommand):
    """`instance.suspend`"""


class ResumeInstance(InstanceCommand):
    """`instance.resume`"""


class DeleteInstance(InstanceCommand):
    """`instance.delete`"""


class LockInstance(InstanceCommand):
    """`instance.lock`"""

    locked_reason: str | None = None


class UnlockInstance(InstanceCommand):
    """`instance.unlock`"""


class ResizeInstance(InstanceCommand):
    """`instance.resize`: to another flavor (its id), on another host."""

    flavor: str


class MigrateInstance(InstanceCommand):
    """`instance.migrate`: to another host, which an admin may name."""

    host: str | None = None


class EvacuateInstance(InstanceCommand):
    """`instance.evacuate`: the instance's host is lost; it goes on elsewhere, on `host` if an admin names one."""

    host: str | None = None


class ConfirmResize(InstanceCommand):
    """`instance.confirm_resize`: the moved guest is good; what it left on its source goes."""


class RevertResize(InstanceCommand):
    """`instance.revert_resize`: the guest goes back to where and what it was."""


class AttachVolume(InstanceCommand):
    """`instance.attach_volume`: `device` is the name it is to have in the guest (`vdb`); None: the next free one."""

    volume_id: str
    device: str | None = None


class DetachVolume(InstanceCommand):
    """`instance.detach_volume`"""

    volume_id: str


class NetworkRequest(Command):
    """One network card asked for: the name of a libvirt network, or of a bridge on the host."""

    network: str | None = None
    bridge: str | None = None


class CreateInstance(Command):
    """`instance.create`: `flavor` and `image` are ids or names; `max_count` instances share a reservation id."""

    name: str = Field(min_length=1, max_length=255)
    flavor: str
    image: str | None = None
    min_count: int = Field(1, ge=1)
    max_count: int = Field(1, ge=1)
    metadata: Mapping[str, str] = {}
    networks: Sequence[NetworkRequest] = ()
    hints: Mapping[str, Any] = {}
    availability_zone: str | None = None
    description: str | None = None
    tags: Sequence[str] = ()


COMMANDS: Mapping[str, type[Command]] = {
    "instance.create": CreateInstance,
    "instance.delete": DeleteInstance,
    "instance.reboot": RebootInstance,
    "instance.start": StartInstance,
    "instance.stop": StopInstance,
    "instance.pause": PauseInstance,
    "instance.unpause": UnpauseInstance,
    "instance.suspend": SuspendInstance,
    "instance.resume": ResumeInstance,
    "instance.lock": LockInstance,
    "instance.resize": ResizeInstance,
    "instance.migrate": MigrateInstance,
    "instance.evacuate": EvacuateInstance,
    "instance.confirm_resize": ConfirmResize,
    "instance.revert_resize": RevertResize,
    "instance.unlock": UnlockInstance,
    "instance.attach_volume": AttachVolume,
    "instance.detach_volume": DetachVolume,
}


class PerformStep(InstanceCommand):
    """`scheduler.<step>`, `compute.<host>.<step>`: a wake-up; what to do stands in the instance's document."""

    action_id: str
    step: str
    seq: int


class DoCleanups(Command):
    """`cleanup.<host>`: a wake-up; what the host owes stands in the collection `cleanups`."""

    host: str


PLACEMENT_EXPLAIN = "placement.explain"
"""The key of an ExplainPlacement."""


class ExplainPlacement(Command):
    """`placement.explain`: where guests would be placed, and why not elsewhere; nothing is claimed. `flavor` and
    `image` are ids or names; the answer goes to `reply_to`."""

    project_id: str
    flavor: str
    image: str | None = None
    availability_zone: str | None = None
    hints: Mapping[str, Any] = {}
    excluded: Sequence[str] = ()
    forced_host: str | None = None
    count: int = Field(1, ge=1, le=1000)


class PlacementExplained(Event):
    """The answer to an ExplainPlacement: the host of each guest (None: no valid host) and one explanation for each;
    `error` says why there is no answer."""

    hosts: Sequence[str | None] = ()
    explanations: Sequence[Mapping[str, Any]] = ()
    error: str | None = None


class ConsoleRequest(InstanceCommand):
    """`console.<host>`: the last `length` lines of the console log, sent to `reply_to`."""

    length: int | None = None


class ConsoleReply(Event):
    """The answer to a ConsoleRequest; `error` says why there is no output."""

    output: str = ""
    error: str | None = None


class CommandAccepted(Event):
    """The answer to a command that was accepted: its action will end."""

    action_id: str
    instance_ids: Sequence[str]


class CommandRejected(Event):
    """The answer to a command that was refused and changed nothing."""

    code: str
    rule: str
    message: str
    hint: str | None = None


class InstanceEvent(Event):
    """`instance.<action>.<start|end|error>.<instance id>` and `instance.power.<state>.<instance id>`."""

    instance_id: str
    name: str
    project_id: str
    user_id: str
    action: str
    phase: str
    request_id: str | None
    rev: int
    host: str | None
    epoch: int
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    flavor: Mapping[str, Any]
    image: Mapping[str, Any] | None
    networks: Sequence[Mapping[str, Any]] = ()
    block_devices: Sequence[Mapping[str, Any]] = ()
    fault: Mapping[str, Any] | None = None


class GuestReport(Event):
    """One guest in a heartbeat: its id, its power state, and the epoch in its metadata."""

    instance_id: str
    power_state: PowerState
    epoch: int = 0


class HostChanged(Event):
    """`host.<host>.<up|unknown|down>`"""

    host: str
    before: str | None
    after: str
    last_seen: datetime | None


class HostFenced(Event):
    """`host.<host>.fenced`: a lost host is proven to run nothing any more, and its guests may be started elsewhere."""

    host: str
    proof: str
    detail: str
    at: datetime


class FenceFailed(Event):
    """`host.<host>.fence_failed`: there is no proof yet, for a reason not told before. Tried again at `retry_at`."""

    host: str
    attempts: int
    error: str
    output: str
    retry_at: datetime


class MassLoss(Event):
    """`fleet.mass_loss`: these hosts fell silent together, and none of them is declared down."""

    hosts: Sequence[str]


class Heartbeat(Event):
    """`host.<host>.heartbeat`. `guests` is complete, or None when the listing failed (`listing_error` says why)."""

    host: str
    boot_id: str
    sequence: int
    sent_at: datetime
    is_responsive: bool = True
    guests: Sequence[GuestReport] | None = None
    listing_error: str | None = None


class PowerDelta(Event):
    """`host.<host>.delta`: one guest changed, as libvirt said it."""

    host: str
    boot_id: str
    sequence: int
    guest: GuestReport


class OrphanFound(Event):
    """`host.<host>.orphan`: a guest that no record knows, told once for each boot of the host's agent. Nothing is done
    to it."""

    host: str
    boot_id: str
    guest: GuestReport
