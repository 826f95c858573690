"""What `virtfleet status` says of a host: as the record has it, and what is proven of one that is lost."""

import pytest
from virtfleet_common.records import FenceProof, Fencing, Host
from virtfleet_common.states import HostState
from virtfleet_local.show import standing

from tests.unit.records import NOW, a_host

PROVEN = FenceProof(proof="silence", at=NOW)
REFUSED = Fencing(lost_at=NOW, attempts=1, by=None, until=NOW, error="it is on")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (a_host(), "up"),
        (a_host(is_enabled=False), "up, disabled"),
        (a_host(state=HostState.UNKNOWN), "unknown"),
        (a_host(state=HostState.DOWN), "down, not fenced yet"),
        (a_host(state=HostState.DOWN, fencing=REFUSED), "down, not fenced: it is on"),
        (a_host(state=HostState.DOWN, fence=PROVEN, is_forced_down=True), "down, forced, fenced (silence)"),
    ],
)
def test_standing(host: Host, expected: str) -> None:
    assert standing(host).plain == expected
