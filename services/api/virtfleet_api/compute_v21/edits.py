"""Changes of what an instance is called and labelled with: no action, no task state, one compare-and-set."""

from collections.abc import Callable, Mapping
from typing import Any

from virtfleet_common.errors import Conflict
from virtfleet_common.records import Instance
from virtfleet_common.store import Expect, Mismatch

from virtfleet_api.context import Call

Change = Callable[[Instance], Mapping[str, Any]]
_TRIES = 20


async def edit(call: Call, change: Change) -> Instance:
    """Apply `change` (the fields to set, from the instance as it is) to the instance that the path names.

    A concurrent write of anything else only means to look again, so that no change made meanwhile is undone.
    Raises NotFound, and Conflict if the instance never holds still.
    """
    id_ = call.param("id")
    for _ in range(_TRIES):
        instance = await call.services.acceptor.find(call.who, id_)
        fields = change(instance)
        if not fields:
            return instance
        try:
            return await call.store.instances.transition(id_, expect=Expect(rev=instance.rev), set=fields)
        except Mismatch:
            continue
    raise Conflict(f"Instance {id_} changes too fast to be edited; try again.", rule="one_writer")
