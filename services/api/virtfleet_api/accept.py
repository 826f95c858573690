"""Accepting an action: the same checks and the same write for HTTP and AMQP.

find (404) -> policy (403) -> lock (409) -> sound request (400) -> state table (409) -> host (409) -> one
compare-and-set that sets the first task state, the action, its first step and the events. Whoever loses it gets a 409.
The same action id accepted twice is one action, so a command that arrives twice is answered alike.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid5

from virtfleet_common import effects
from virtfleet_common.actions import ACTIONS, ActionSpec, HostNeed
from virtfleet_common.effects import Effect
from virtfleet_common.errors import BadRequest, Conflict, Forbidden, NotFound
from virtfleet_common.events import lifecycle
from virtfleet_common.ports import Clock
from virtfleet_common.records import ActionState, Fault, Flavor, Image, Instance, NetworkPort
from virtfleet_common.relay import Relay
from virtfleet_common.settings import ApiSettings
from virtfleet_common.states import HostState, TaskState, VmState
from virtfleet_common.steps import STEPS, make_step
from virtfleet_common.store import Expect, Mismatch, Store

from virtfleet_api.identity import Identity

NAMESPACE = UUID("b1f5a4de-6a0f-4d0a-9d3c-7f1d6a0c52f1")
_ALIVE = frozenset(VmState) - {VmState.DELETED}
_TRIES = 20
_HOST_STATE_KEPT = 1.0
_MOST_AT_ONCE = 1000
_READ_YOUR_WRITES = 1.0
"""Seconds the answer waits for the action's history to be readable; with the broker away it comes without."""


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


class Acceptor:
    """See the module's text. Every method raises Refused where a rule refuses, and has then changed nothing."""

    def __init__(self, store: Store, relay: Relay, clock: Clock, settings: ApiSettings) -> None:
        self._store = store
        self._relay = relay
        self._clock = clock
        self._settings = settings
        self._host_states: dict[str, tuple[float, HostState | None]] = {}

    async def find(self, who: Identity, instance_id: str) -> Instance:
        """An instance that `who` may see. Raises NotFound, for another project's instance too."""
        instance = await self._store.instances.get(instance_id)
        if instance is None or instance.vm_state is VmState.DELETED or not _may_see(who, instance):
            raise NotFound(f"Instance {instance_id} could not be found.", rule="instance_exists")
        return instance

    async def act(
        self, who: Identity, instance_id: str, action: str, args: Mapping[str, Any], *, action_id: str
    ) -> Instance:
        """Accept `action` (a key of ACTIONS) on an instance; returns the instance as written."""
        spec = ACTIONS[action]
        for _ in range(_TRIES):
            instance = await self.find(who, instance_id)
            if await self._is_accepted(instance, action_id):
                return instance
            await self._check(who, instance, spec)
            try:
                return await self._write(who, instance, spec, args, action_id)
            except Mismatch:
                continue  # somebody was faster: look again, and let the state table say what that means
        raise Conflict(f"Instance {instance_id} changes too fast to {spec.name} it.", rule="one_writer")

    async def create(self, who: Identity, request: CreateRequest, *, action_id: str) -> list[Instance]:
        """Accept a create; returns the instances as written, all with one reservation id."""
        _require_role(who, "member", "create")
        if not 1 <= request.min_count <= request.max_count <= _MOST_AT_ONCE:
            raise BadRequest(
                f"min_count must be at least 1, and max_count from min_count to {_MOST_AT_ONCE}.", rule="counts"
            )
        flavor = await self._flavor(request.flavor)
        image = await self._image(who, request.image, flavor)
        count = request.max_count
        return [await self._create_one(who, request, flavor, image, action_id, n, count) for n in range(count)]

    async def _create_one(
        self, who: Identity, request: CreateRequest, flavor: Flavor, image: Image | None, first_id: str, n: int, count: int
    ) -> Instance:  # fmt: skip
        instance_id = str(uuid5(NAMESPACE, f"{first_id}/{n}"))
        action_id = first_id if n == 0 else f"req-{uuid5(NAMESPACE, f'{first_id}/action/{n}')}"
        now = self._clock.now()
        action = self._begin(who, ACTIONS["create"], None, VmState.BUILDING, action_id, {})
        instance = Instance(
            id=instance_id,
            name=request.name if count == 1 else f"{request.name}-{n + 1}",
            project_id=who.project_id,
            user_id=who.user_id,
            vm_state=VmState.BUILDING,
            task_state=TaskState.SCHEDULING,
            action=action,
            flavor=flavor,
            image=image,
            networks=[_port(instance_id, i, asked) for i, asked in enumerate(request.networks)],
            metadata=request.metadata,
            hints=request.hints,
            availability_zone=request.availability_zone,
            description=request.description,
            tags=list(request.tags),
            reservation_id="r-" + uuid5(NAMESPACE, first_id).hex[:8],
            created_at=now,
            updated_at=now,
        )
        try:
            return await self._relay.insert(instance, self._opening(instance, action), wait=_READ_YOUR_WRITES)
        except Mismatch as there:
            return there.instance or instance

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

    async def _is_accepted(self, instance: Instance, action_id: str) -> bool:
        if instance.action is not None and instance.action.id == action_id:
            return True
        return any(effect.get("action_id") == action_id for effect in instance.outbox)

    async def _check(self, who: Identity, instance: Instance, spec: ActionSpec) -> None:
        _require_role(who, spec.role, spec.name)
        if spec.respects_lock and instance.locked_by is not None and not who.is_admin:
            raise Conflict(f"Instance {instance.id} is locked", rule="lock")
        wrong = wrong_state(spec, instance)
        if wrong is not None:
            attribute, value = wrong
            raise Conflict(
                f"Cannot '{spec.name}' instance {instance.id} while it is in {attribute} {value}",
                rule=f"{spec.name}.{attribute}",
                attribute=attribute,
                value=value,
            )
        if spec.needs_host is HostNeed.UP and await self._host_state(instance.host) is not HostState.UP:
            raise Conflict(
                f"Cannot '{spec.name}' instance {instance.id}: its host is not up at this time.",
                rule="host_up",
                hint="Try again when the host is back, or evacuate the instance.",
            )

    async def _host_state(self, host: str | None) -> HostState | None:
        if host is None:
            return None
        known = self._host_states.get(host)
        if known is None or time.monotonic() - known[0] > _HOST_STATE_KEPT:
            found = await self._store.hosts.get_state(host)
            known = self._host_states[host] = (time.monotonic(), found)
        return known[1]

    async def _write(
        self, who: Identity, instance: Instance, spec: ActionSpec, args: Mapping[str, Any], action_id: str
    ) -> Instance:
        match spec.name:
            case "lock" | "unlock":
                return await self._lock(who, instance, spec.name, args, action_id)
            case "resetState":
                return await self._reset(who, instance, spec, VmState(args["state"]), action_id)
            case "delete" if instance.task_state is TaskState.DELETING:
                return instance  # as Nova: the second delete is content with the first
            case "delete" if await self._is_beyond_reach(instance):
                return await self._delete_record(who, instance, spec, action_id)
            case _:
                return await self._start(who, instance, spec, args, action_id)

    async def _start(
        self, who: Identity, instance: Instance, spec: ActionSpec, args: Mapping[str, Any], action_id: str
    ) -> Instance:
        action = self._begin(who, spec, instance.host, instance.vm_state, action_id, args)
        return await self._relay.commit(
            instance.id,
            expect=self._unchanged(instance),
            set={"task_state": spec.first_task, "progress": 0},
            begin=action,
            effects=[*superseded(instance, by=spec.name, now=action.started_at), *self._opening(instance, action)],
            wait=_READ_YOUR_WRITES,
        )

    async def _delete_record(self, who: Identity, instance: Instance, spec: ActionSpec, action_id: str) -> Instance:
        """No hypervisor can be asked: the record goes at once, and the host cleans up when it returns."""
        action = self._begin(who, spec, instance.host, instance.vm_state, action_id, {})
        now = action.started_at
        gone = {"vm_state": VmState.DELETED, "task_state": None, "deleted_at": now}
        told = [
            *superseded(instance, by=spec.name, now=now),
            *self._opening(instance, action),
            effects.closed(action_id, at=now, result="Success"),
            lifecycle(instance, spec.name, "end", after=gone, request_id=action_id),
            effects.release(instance.id),
        ]
        return await self._relay.commit(
            instance.id, expect=self._unchanged(instance), set=gone, end=True, effects=told, wait=_READ_YOUR_WRITES
        )

    async def _is_beyond_reach(self, instance: Instance) -> bool:
        return instance.host is None or await self._host_state(instance.host) in {HostState.DOWN, None}

    async def _lock(
        self, who: Identity, instance: Instance, name: str, args: Mapping[str, Any], action_id: str
    ) -> Instance:
        owner = "admin" if who.is_admin else "owner"
        if name == "unlock" and instance.locked_by == "admin" and not who.is_admin:
            raise Forbidden("Only an admin may unlock what an admin locked.", rule="unlock_override")
        keeps = name == "lock" and instance.locked_by == "admin"
        locked = {
            "locked_by": (instance.locked_by if keeps else owner) if name == "lock" else None,
            "locked_reason": args.get("locked_reason") if name == "lock" else None,
        }
        now = self._clock.now()
        told = [
            effects.opened(
                action_id,
                instance_id=instance.id,
                action=name,
                user_id=who.user_id,
                project_id=who.project_id,
                start=now,
            ),
            effects.closed(action_id, at=now, result="Success"),
            lifecycle(instance, name, "end", after={}, request_id=action_id),
        ]
        return await self._relay.commit(
            instance.id,
            expect=Expect(rev=instance.rev, vm_states=_ALIVE),
            set=locked,
            effects=told,
            wait=_READ_YOUR_WRITES,
        )

    async def _reset(
        self, who: Identity, instance: Instance, spec: ActionSpec, vm_state: VmState, action_id: str
    ) -> Instance:
        """An admin says what the instance is. Nothing is left behind by it: the action in progress ends as superseded."""
        now = self._clock.now()
        told = [
            *superseded(instance, by=spec.name, now=now),
            effects.opened(
                action_id,
                instance_id=instance.id,
                action=spec.name,
                user_id=who.user_id,
                project_id=who.project_id,
                start=now,
            ),
            effects.closed(action_id, at=now, result="Success"),
            lifecycle(
                instance, spec.name, "end", after={"vm_state": vm_state, "task_state": None}, request_id=action_id
            ),
        ]
        reset = {"vm_state": vm_state, "task_state": None}
        return await self._relay.commit(
            instance.id, expect=self._unchanged(instance), set=reset, end=True, effects=told, wait=_READ_YOUR_WRITES
        )

    def _unchanged(self, instance: Instance) -> Expect:
        return Expect(
            task_states=frozenset({instance.task_state}),
            vm_states=frozenset({instance.vm_state}),
            action_id=instance.action.id if instance.action else None,
            rev=instance.rev,
        )

    def _begin(
        self, who: Identity, spec: ActionSpec, host: str | None, vm_state: VmState, action_id: str, args: Mapping[str, Any]
    ) -> ActionState:  # fmt: skip
        if spec.step is None or spec.step not in STEPS:
            raise BadRequest(f"There is no such action: {spec.name}", rule="action_exists")
        now = self._clock.now()
        return ActionState(
            id=action_id,
            name=spec.name,
            trace_id=action_id.removeprefix("req-").replace("-", "")[:32],
            user_id=who.user_id,
            project_id=who.project_id,
            step=make_step(spec.step, host, args=args),
            started_at=now,
            expires_at=now + timedelta(seconds=self._settings.action_timeout),
            original_vm_state=vm_state,
            progressed_at=now,
        )

    def _opening(self, instance: Instance, action: ActionState) -> list[Effect]:
        begun = instance.model_copy(update={"action": action})
        return [
            effects.opened(
                action.id, instance_id=instance.id, action=action.name, user_id=action.user_id,
                project_id=action.project_id, start=action.started_at,
            ),
            lifecycle(
                begun, action.name, "start", after={"task_state": action.step.expects[0]}, request_id=action.id
            ),
        ]  # fmt: skip


def wrong_state(spec: ActionSpec, instance: Instance) -> tuple[str, str | None] | None:
    """The attribute that the state table refuses, and its value; None if the action is allowed now."""
    if spec.vm_states is not None and instance.vm_state not in spec.vm_states:
        return "vm_state", instance.vm_state
    if spec.task_states is not None and instance.task_state not in spec.task_states:
        return "task_state", instance.task_state
    return None


def superseded(instance: Instance, *, by: str, now: Any) -> list[Effect]:
    """What ends the record of the action in progress when another one preempts it."""
    action = instance.action
    if action is None:
        return []
    why = f"superseded by {by}"
    fault = Fault(code="superseded", message=why, created=now)
    return [
        effects.step_finished(action.id, action.step.seq, at=now, result="superseded", details=why),
        effects.closed(action.id, at=now, result="superseded", message=why),
        lifecycle(instance, action.name, "error", after={}, request_id=action.id, fault=fault),
    ]


def _may_see(who: Identity, instance: Instance) -> bool:
    return who.is_admin or instance.project_id == who.project_id


def _may_use(who: Identity, image: Image) -> bool:
    return who.is_admin or image.visibility == "public" or image.project_id == who.project_id


def _require_role(who: Identity, role: str, action: str) -> None:
    if not who.has_role(role):
        raise Forbidden(f"Policy doesn't allow {action} to be performed.", rule=f"policy.{action}")


def _port(instance_id: str, index: int, asked: Mapping[str, str | None]) -> NetworkPort:
    digest = uuid5(NAMESPACE, f"{instance_id}/port/{index}").hex
    mac = "52:54:00:" + ":".join(digest[i : i + 2] for i in (0, 2, 4))
    return NetworkPort(mac=mac, network=asked.get("network"), bridge=asked.get("bridge"))
