"""What is to be placed, as plain values: all that a decision looks at beside the hosts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

AFFINITY = "affinity"
ANTI_AFFINITY = "anti-affinity"
SOFT_AFFINITY = "soft-affinity"
SOFT_ANTI_AFFINITY = "soft-anti-affinity"


@dataclass(frozen=True, slots=True)
class Group:
    """The server group of the guest: `members` counts the other members that hold a place, per host; `tied_to` are the
    hosts that an affinity group is tied to (more than one while a member moves: then no host fits)."""

    id: str
    policy: str
    max_per_host: int = 1
    members: Mapping[str, int] = field(default_factory=dict)
    tied_to: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Request:
    """`excluded` hosts were tried and failed, or must not be; `forced_host` is the only one to be looked at.

    `same_host` and `different_host` are the hosts that the hints of those names come to; None: no such hint.
    """

    vcpus: int
    ram_mb: int
    disk_gb: int
    project_id: str = ""
    flavor_name: str = ""
    extra_specs: Mapping[str, str] = field(default_factory=dict)
    image_id: str | None = None
    image_properties: Mapping[str, str] = field(default_factory=dict)
    availability_zone: str | None = None
    group: Group | None = None
    same_host: frozenset[str] | None = None
    different_host: frozenset[str] | None = None
    excluded: frozenset[str] = frozenset()
    forced_host: str | None = None

    def with_member_on(self, host: str) -> "Request":
        """The request for the next guest of the same group, when this one is on `host`."""
        if self.group is None:
            return self
        members = {**self.group.members, host: self.group.members.get(host, 0) + 1}
        tied_to = self.group.tied_to | {host} if self.group.policy == AFFINITY else self.group.tied_to
        return replace(self, group=replace(self.group, members=members, tied_to=tied_to))
