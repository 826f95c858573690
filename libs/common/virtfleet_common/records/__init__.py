"""The records the store keeps, as frozen models: what a document means, field by field.

Sizes are in the unit their name says (`ram_mb`, `disk_gb`); times are aware UTC.
"""

from virtfleet_common.records.access import FLEET, AmqpUser, Fleet, Reply, Token
from virtfleet_common.records.base import Record
from virtfleet_common.records.catalogue import Flavor, Image
from virtfleet_common.records.history import ActionEvent, ActionRecord, Cleanup, Migration
from virtfleet_common.records.holdings import Holder, HolderAction, ProjectQuota, QuotaHold, QuotaHolder, QuotaShift
from virtfleet_common.records.host import (
    Aggregate,
    Allocation,
    FenceProof,
    Fencing,
    Host,
    HostFailure,
    Pin,
    Resources,
    ServerGroup,
)
from virtfleet_common.records.instance import (
    EVACUATION,
    ActionState,
    Fault,
    Instance,
    Move,
    NetworkPort,
    Sighting,
    Step,
)

__all__ = [
    "EVACUATION",
    "FLEET",
    "ActionEvent",
    "ActionRecord",
    "ActionState",
    "Aggregate",
    "Allocation",
    "AmqpUser",
    "Cleanup",
    "Fault",
    "FenceProof",
    "Fencing",
    "Flavor",
    "Fleet",
    "Holder",
    "HolderAction",
    "Host",
    "HostFailure",
    "Image",
    "Instance",
    "Migration",
    "Move",
    "NetworkPort",
    "Pin",
    "ProjectQuota",
    "QuotaHold",
    "QuotaHolder",
    "QuotaShift",
    "Record",
    "Reply",
    "Resources",
    "ServerGroup",
    "Sighting",
    "Step",
    "Token",
]
