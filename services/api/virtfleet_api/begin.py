"""What every acceptance needs: who may, how ids are made, and how long the answer waits."""

from uuid import UUID

from virtfleet_common.errors import Forbidden

from virtfleet_api.identity import Identity

NAMESPACE = UUID("b1f5a4de-6a0f-4d0a-9d3c-7f1d6a0c52f1")
READ_YOUR_WRITES = 1.0
"""Seconds the answer waits for the action's history to be readable; with the broker away it comes without."""


def require_role(who: Identity, role: str, action: str) -> None:
    """Raises Forbidden if `who` does not hold the role that an action needs."""
    if not who.has_role(role):
        raise Forbidden(f"Policy doesn't allow {action} to be performed.", rule=f"policy.{action}")
