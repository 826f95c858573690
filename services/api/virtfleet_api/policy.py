"""Who may do what: one row per policy, the least role that passes. Ownership is checked where things are found.

Readers only read; members act on what is in their project; admins do everything, everywhere.
"""

from collections.abc import Mapping
from enum import StrEnum

from virtfleet_common.errors import Forbidden

from virtfleet_api.identity import Identity


class Role(StrEnum):
    """Each role includes the ones before it."""

    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"


RULES: Mapping[str, Role] = {
    "read": Role.READER,
    "servers:create": Role.MEMBER,
    "servers:update": Role.MEMBER,
    "servers:delete": Role.MEMBER,
    "servers:action": Role.MEMBER,
    "servers:metadata": Role.MEMBER,
    "servers:tags": Role.MEMBER,
    "servers:all_tenants": Role.ADMIN,
    "flavors:manage": Role.ADMIN,
    "volumes:manage": Role.ADMIN,
    "volumes:attach": Role.MEMBER,
    "volumes:all_tenants": Role.ADMIN,
    "images:manage": Role.MEMBER,
    "images:publicize": Role.ADMIN,
    "hosts:read": Role.ADMIN,
    "hosts:manage": Role.ADMIN,
    "quotas:other_project": Role.ADMIN,
    "quotas:manage": Role.ADMIN,
    "server_groups:manage": Role.MEMBER,
    "server_groups:all": Role.ADMIN,
}


def may(who: Identity, rule: str) -> bool:
    """Whether a policy lets `who` pass."""
    return who.has_role(RULES[rule])


def demand(who: Identity, rule: str) -> None:
    """Raises Forbidden unless the policy lets `who` pass."""
    if not may(who, rule):
        message = f"Policy doesn't allow {rule} to be performed."
        raise Forbidden(message, rule=f"policy.{rule}", hint=f"It needs the role {RULES[rule]}.")
