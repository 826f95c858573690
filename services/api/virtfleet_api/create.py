"""Accepting a create: the request is checked whole, then each instance is one insert with its first step and events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid5

from virtfleet_common.actions import ACTIONS
from virtfleet_common.beginning import begin, opening
from virtfleet_common.errors import BadRequest, Forbidden
from virtfleet_common.failpoints import reach
from virtfleet_common.ports import Clock
from virtfleet_common.records import ActionState, Flavor, Image, Instance, NetworkPort
from virtfleet_common.relay import Relay
from virtfleet_common.settings import ApiSettings
from virtfleet_common.states import TaskState, VmState
from virtfleet_common.store import Mismatch, Store

from virtfleet_api.begin import NAMESPACE, READ_YOUR_WRITES, require_role
from virtfleet_api.budget import Budget
from virtfleet_api.identity import Identity

_MOST_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What a create asks for. `flavor` and `image` are ids or names; each network is a libvirt network or a bridge."""

    name: str
    flavor: str
    image: str | None = None
    min_count: int = 1
    max_count: int = 1
    metadata: Mapping[str, str] = field(default_factory=dict)
    networks: Sequence[Mapping[str, str | None]] = ()
    hints: Mapping[str, Any] = field(default_factory=dict)
    availability_zone: str | None = None
    description: str | None = None
    tags: Sequence[str] = ()


class Creator:
    """Makes the instances of one request. Raises Refused where a rule refuses, and has then changed nothing."""

    def __init__(self, store: Store, relay: Relay, clock: Clock, settings: ApiSettings) -> None:
        self._store = store
        self._relay = relay
        self._clock = clock
        self._settings = settings
        self._budget = Budget(store, settings)

    async def create(self, who: Identity, request: CreateRequest, *, action_id: str) -> list[Instance]:
        """Accept a create; returns the instances as written, all with one reservation id: as many as the quota has room
        for, from `min_count` to `max_count`.

        Ids are made from the action id, so that the same request accepted twice makes the same instances once.
        """
        require_role(who, "member", "create")
        if not 1 <= request.min_count <= request.max_count <= _MOST_AT_ONCE:
            raise BadRequest(
                f"min_count must be at least 1, and max_count from min_count to {_MOST_AT_ONCE}.", rule="counts"
            )
        if ":" in (request.availability_zone or "") and not who.is_admin:
            raise Forbidden("Only an admin may name the host of a new instance.", rule="policy.create:forced_host")
        flavor = await self._flavor(request.flavor)
        image = await self._image(who, request.image, flavor)
        await self._check_group(who, request.hints)
        drafts = [self._draft(who, request, flavor, image, action_id, number) for number in range(request.max_count)]
        ids = [draft.id for draft, _ in drafts]
        fitting = await self._budget.reserve(who.project_id, ids, flavor, least=request.min_count)
        reach("create.reserved")
        return [await self._insert(draft, action) for draft, action in drafts[:fitting]]

    def _draft(
        self, who: Identity, request: CreateRequest, flavor: Flavor, image: Image | None, first_id: str, number: int
    ) -> tuple[Instance, ActionState]:
        id_ = str(uuid5(NAMESPACE, f"{first_id}/{number}"))
        action_id = first_id if number == 0 else f"req-{uuid5(NAMESPACE, f'{first_id}/action/{number}')}"
        now = self._clock.now()
        instance = Instance(
            id=id_,
            name=request.name if request.max_count == 1 else f"{request.name}-{number + 1}",
            project_id=who.project_id,
            user_id=who.user_id,
            vm_state=VmState.BUILDING,
            task_state=TaskState.SCHEDULING,
            flavor=flavor,
            image=image,
            networks=[_port(id_, i, asked) for i, asked in enumerate(request.networks)],
            metadata=request.metadata,
            hints=request.hints,
            availability_zone=request.availability_zone,
            description=request.description,
            tags=list(request.tags),
            reservation_id="r-" + uuid5(NAMESPACE, first_id).hex[:8],
            created_at=now,
            updated_at=now,
        )
        by = (who.user_id, who.project_id)
        action = begin(ACTIONS["create"], instance, action_id, by=by, at=now, timeout=self._settings.action_timeout)
        return instance.model_copy(update={"action": action}), action

    async def _insert(self, instance: Instance, action: ActionState) -> Instance:
        try:
            return await self._relay.insert(instance, opening(instance, action), wait=READ_YOUR_WRITES)
        except Mismatch as there:
            stored = there.instance or instance
            if stored.vm_state is VmState.DELETED:  # a late copy of the request counted it once more
                await self._budget.release(stored.project_id, stored.id)
            return stored

    async def _check_group(self, who: Identity, hints: Mapping[str, Any]) -> None:
        if "group" not in hints:
            return
        named = hints["group"]
        group = await self._store.server_groups.get(named) if isinstance(named, str) else None
        if group is None or not (who.is_admin or group.project_id == who.project_id):
            raise BadRequest(f"Instance group {named} could not be found.", rule="server_group_exists")

    async def _flavor(self, name: str) -> Flavor:
        flavor = await self._store.flavors.get(name)
        if flavor is None:
            flavor = next(iter(await self._store.flavors.find({"name": name})), None)
        if flavor is None or flavor.is_disabled:
            raise BadRequest(f"Flavor {name} could not be found.", rule="flavor_exists")
        return flavor

    async def _image(self, who: Identity, name: str | None, flavor: Flavor) -> Image | None:
        if name is None:
            return None
        found = await self._store.images.get(name)
        candidates = [found] if found else await self._store.images.find({"name": name})
        image = next((one for one in candidates if _may_use(who, one)), None)
        if image is None:
            raise BadRequest(f"Image {name} could not be found.", rule="image_exists")
        if flavor.ram_mb < image.min_ram_mb or 0 < flavor.disk_gb < image.min_disk_gb:
            raise BadRequest(
                f"Flavor {flavor.name} is too small for image {image.name}: it needs {image.min_ram_mb} MiB of RAM "
                f"and {image.min_disk_gb} GiB of disk.",
                rule="flavor_fits_image",
            )
        return image


def _may_use(who: Identity, image: Image) -> bool:
    return who.is_admin or image.visibility == "public" or image.project_id == who.project_id


def _port(instance_id: str, index: int, asked: Mapping[str, str | None]) -> NetworkPort:
    digest = uuid5(NAMESPACE, f"{instance_id}/port/{index}").hex
    mac = "52:54:00:" + ":".join(digest[i : i + 2] for i in (0, 2, 4))
    return NetworkPort(mac=mac, network=asked.get("network"), bridge=asked.get("bridge"))
