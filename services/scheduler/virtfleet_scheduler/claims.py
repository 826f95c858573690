"""A claim with the rule of its group.

Anti-affinity is a condition within the host's claim. Affinity ties the group to the host first (a pin in the group's
own document, by compare-and-set), then claims, and unties where the host refuses. Whoever dies in between leaves a pin
that no claim belongs to: it holds the group together until the audit takes it away, and breaks nothing.
"""

from collections.abc import Sequence
from uuid import uuid4

from virtfleet_common.failpoints import reach
from virtfleet_common.records import Allocation
from virtfleet_common.store import Store
from virtfleet_common.store.pins import new_pin

from virtfleet_scheduler.request import AFFINITY, ANTI_AFFINITY, Group


async def claim(store: Store, host: str, wanted: Allocation, group: Group | None, lost: Sequence[str] = ()) -> bool:
    """Whether the host has the place for this claim, now or already, and no rule of the group is broken.

    Members on `lost` hosts do not tie an affinity group.
    """
    if group is None or group.policy not in (AFFINITY, ANTI_AFFINITY):
        return await store.hosts.claim(host, wanted)
    if group.policy == ANTI_AFFINITY:
        return await store.hosts.claim(host, wanted, most_in_group=group.max_per_host)
    return await _claim_together(store, host, wanted, group, lost)


async def _claim_together(store: Store, host: str, wanted: Allocation, group: Group, lost: Sequence[str]) -> bool:
    attempt = uuid4().hex
    pin = new_pin(wanted.claim, wanted.instance_id, host, attempt)
    if not await store.pins.pin(group.id, pin, lost):
        return False
    reach("claim.pinned")
    if await store.hosts.claim(host, wanted):
        return True
    await store.pins.unpin(group.id, wanted.claim, host, attempt)
    return False
