"""What was done, and what is left to do of it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field

from virtfleet_common.records.base import Record
from virtfleet_common.records.instance import transfer_token


class ActionEvent(Record):
    """One step of an action as people read it (Nova's instance action event). `result`: Success, Error, superseded."""

    event: str = ""
    start: datetime | None = None
    finish: datetime | None = None
    result: str | None = None
    host: str | None = None
    traceback: str | None = None
    details: str | None = None


class ActionRecord(Record):
    """The history of one accepted action (Nova's instance action); `finish` is set when it ended, however it ended."""

    id: str = Field(alias="_id")
    instance_id: str = ""
    action: str = ""
    user_id: str | None = None
    project_id: str | None = None
    start: datetime | None = None
    finish: datetime | None = None
    result: str | None = None
    message: str | None = None
    explanation: Mapping[str, Any] | None = None
    events: Mapping[str, ActionEvent] = {}


class Migration(Record):
    """One move of an instance (Nova's migration). `type`: resize, migration, evacuation; `number` is its id in the API.

    `rank` orders what is written of it: a write of a lower rank than the stored one is an old one, and changes nothing.
    """

    id: str = Field(alias="_id")
    number: int
    instance_id: str
    project_id: str
    user_id: str
    type: str
    status: str
    rank: int = 0
    source: str
    destination: str | None = None
    old_flavor_id: str
    new_flavor_id: str
    created_at: datetime
    updated_at: datetime


class Cleanup(Record):
    """Work that a host owes: what a move left there has to go, whenever the host is there to do it. Then `claim`, which
    holds the place of what was left, is given back. `is_shared`: the disk is another host's too, and stays (None: the
    host has to look). `is_completing`: the migration is completed when this is done."""

    id: str = Field(alias="_id")
    host: str
    instance_id: str
    claim: str | None = None
    is_shared: bool | None = None
    is_completing: bool = False
    migration_id: str | None = None
    created_at: datetime

    @property
    def transfer(self) -> str | None:
        """The name of the transfer that this host was the destination of (see `Move`); None: there was no move."""
        return transfer_token(self.migration_id, self.host) if self.migration_id is not None else None
