"""What accepting an evacuation has to check, and what it writes."""

from collections.abc import Mapping
from typing import Any

from virtfleet_common import moves
from virtfleet_common.actions import ActionSpec
from virtfleet_common.errors import BadRequest, NotFound
from virtfleet_common.records import EVACUATION, ActionState, Instance
from virtfleet_common.store import Store

from virtfleet_api.resize import check_not_moving


async def check_target(store: Store, instance: Instance, args: Mapping[str, Any]) -> None:
    """Raises BadRequest for what does not go together, NotFound for a host that nobody knows, BadRequest for the
    instance's own."""
    host: str | None = args.get("host")
    if args.get("sets_password") and args.get("on_shared_storage"):
        raise BadRequest("admin password can't be changed on existing disk", rule="evacuate.password")
    if host is None:
        if args.get("force"):
            raise BadRequest("Can't force to a non-provided destination", rule="evacuate.force")
        return
    if await store.hosts.get_state(host) is None:
        raise NotFound(f"Compute host {host} could not be found.", rule="host_exists")
    if host == instance.host:
        raise BadRequest(
            f"The target host can't be the same one: instance {instance.id} is on {host}.", rule="host_differs"
        )


def begun(
    instance: Instance, spec: ActionSpec, action: ActionState, args: Mapping[str, Any]
) -> tuple[ActionState, moves.Turn]:
    """The action and the first turn of an evacuation. Raises Conflict for an instance that is in a move already."""
    hint = "Revert it, or confirm it if the host that it came from is the one that is lost."
    check_not_moving(instance, spec.name, hint=hint)
    notes = {"forced_host": args.get("host"), "on_shared_storage": args.get("on_shared_storage")}
    known = {name: value for name, value in notes.items() if value is not None}
    return action.model_copy(update={"notes": known}), moves.begun(instance, action, EVACUATION)
