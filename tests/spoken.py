"""A host without an agent: the test says what its agent would."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import uuid4

from virtfleet_common.bus import EVENTS, Outgoing
from virtfleet_common.messages import GuestReport, Heartbeat, PowerDelta
from virtfleet_common.rabbit import RabbitBus
from virtfleet_common.records import Flavor, Instance, Resources
from virtfleet_common.states import PowerState, VmState
from virtfleet_local.fleet import DATABASE_NAME

from tests.world import World


@dataclass
class Spoken:
    """A host that the test speaks for, as its agent would."""

    world: World
    bus: RabbitBus
    name: str
    boot: str = field(default_factory=lambda: uuid4().hex)
    numbers: Any = field(default_factory=lambda: count(10))

    async def register(self) -> None:
        """The host is there, or there again after a boot of its agent; nothing is placed on it."""
        facts = {"boot_id": self.boot, "is_enabled": False}
        await self.world.store.hosts.register(self.name, uuid=self.name, limits=Resources(), facts=facts)

    async def listing(self, guests: Mapping[str, PowerState] | None, *, sequence: int | None = None) -> None:
        """A heartbeat with a complete listing, or with none because it failed."""
        reports = [GuestReport(instance_id=id_, power_state=power, epoch=1) for id_, power in (guests or {}).items()]
        beat = Heartbeat(
            host=self.name, boot_id=self.boot, sequence=next(self.numbers) if sequence is None else sequence,
            sent_at=datetime.now(UTC), guests=None if guests is None else reports,
            listing_error="libvirt is away" if guests is None else None,
        )  # fmt: skip
        await self._say("heartbeat", beat)

    async def delta(self, id_: str, power: PowerState, *, sequence: int | None = None) -> None:
        """One guest changed."""
        number = next(self.numbers) if sequence is None else sequence
        guest = GuestReport(instance_id=id_, power_state=power, epoch=1)
        await self._say("delta", PowerDelta(host=self.name, boot_id=self.boot, sequence=number, guest=guest))

    async def instance(self, **fields: Any) -> Instance:
        """An active instance on record here."""
        now = datetime.now(UTC)
        values = {
            "id": str(uuid4()), "name": "spoken for", "project_id": "p", "user_id": "u", "vm_state": VmState.ACTIVE,
            "power_state": PowerState.RUNNING, "host": self.name, "epoch": 1, "created_at": now, "updated_at": now,
            "flavor": Flavor(id="f", name="f", vcpus=1, ram_mb=1),
        }  # fmt: skip
        return await self.world.store.instances.insert(Instance.model_validate({**values, **fields}))

    async def is_heard(self) -> None:
        """Wait until everything that was said has been listened to: a host's reports are taken in their order."""
        mark = await self.instance()
        async with self.world.client.subscribed(f"instance.power.*.{mark.id}") as told:
            await self.delta(mark.id, PowerState.PAUSED)
            await anext(told)
        with self.world.fleet.connect() as client:
            client[DATABASE_NAME]["instances"].delete_one({"_id": mark.id})

    async def _say(self, word: str, report: Heartbeat | PowerDelta) -> None:
        key, kind = f"host.{self.name}.{word}", f"virtfleet.host.{word}"
        await self.bus.publish(Outgoing(EVENTS, key, kind, report, "test"))
