"""Everything that can go wrong, in one tree.

VirtfleetError
├── Refused          the caller can mend it: `code`, HTTP status, the rule that refused, a hint
│   ├── BadRequest 400 · Unauthorized 401 · Forbidden 403 · OverQuota 403 · NotFound 404 · Conflict 409
│   └── NoValidHost  409 where it is answered at once; else the fault of the action, with the explanation
└── Faulty           ours or the world's: `code`, and whether trying again may help
    ├── HypervisorFault      libvirt refused or failed
    │   └── HypervisorTimeout    libvirt did not answer in time: nothing is known about the outcome
    ├── FenceFault           a lost host could not be proven to be off
    ├── ImageFault           an image is missing, unreadable or not what its checksum says
    ├── BusUnavailable       the broker cannot be reached or did not confirm
    │   └── Unroutable           the broker is there, and no queue takes this key
    ├── StoreUnavailable     the database cannot be reached or did not confirm
    ├── BadMessage           a message is not a valid event or command
    └── LostOwnership        the compare-and-set of an executor failed: the instance is no longer its business
"""

from collections.abc import Mapping
from typing import Any


class VirtfleetError(Exception):
    """The root: a message for people, a constant `code` for programs, and the facts."""

    code = "virtfleet"

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts: Mapping[str, Any] = facts


class Refused(VirtfleetError):
    """A request that breaks a rule and changed nothing. `rule` names it; `hint` says how to mend the request."""

    code = "refused"
    status = 400

    def __init__(self, message: str, *, rule: str, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.rule = rule
        self.hint = hint


class BadRequest(Refused):
    """The request is not sound in itself."""

    code, status = "bad_request", 400


class Unauthorized(Refused):
    """Nobody knows who asks."""

    code, status = "unauthorized", 401


class Forbidden(Refused):
    """The one who asks may not."""

    code, status = "forbidden", 403


class OverQuota(Forbidden):
    """The project's quota has no room for it."""

    code = "over_quota"


class NotFound(Refused):
    """No such thing, or none that the one who asks may see."""

    code, status = "not_found", 404


class Conflict(Refused):
    """The thing is not in a state that allows the request, or a concurrent request won."""

    code, status = "conflict", 409


class NoValidHost(Refused):
    """No host can take the guest; `facts["explanation"]` says per filter how many were refused and why."""

    code, status = "no_valid_host", 409


class Faulty(VirtfleetError):
    """A failure that the caller cannot mend. `retryable`: the same call may work later."""

    code = "faulty"
    retryable = False


class HypervisorFault(Faulty):
    """libvirt refused or failed; `facts["operation"]` names the call."""

    code = "hypervisor_fault"


class HypervisorTimeout(HypervisorFault):
    """libvirt did not answer within the deadline. The outcome is unknown."""

    code, retryable = "hypervisor_timeout", True


class FenceFault(Faulty):
    """A lost host could not be proven to be off; `facts["output"]` is what was heard meanwhile, for people."""

    code, retryable = "fence_fault", True


class ImageFault(Faulty):
    """An image is missing, unreadable, or not what its checksum says."""

    code = "image_fault"


class BusUnavailable(Faulty):
    """The broker cannot be reached, or did not confirm in time."""

    code, retryable = "bus_unavailable", True


class Unroutable(BusUnavailable):
    """The broker returned a mandatory message: no queue takes its key."""

    code = "unroutable"


class StoreUnavailable(Faulty):
    """The database cannot be reached, or did not confirm in time."""

    code, retryable = "store_unavailable", True


class BadMessage(Faulty):
    """A message is not a valid CloudEvent, or its data is not what its type demands."""

    code = "bad_message"


class LostOwnership(Faulty):
    """An executor's compare-and-set failed: another writer owns the instance's action now."""

    code = "lost_ownership"
