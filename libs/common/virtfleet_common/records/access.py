"""Whose fleet this is, who may speak to it, and what they were answered."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from virtfleet_common.records.base import Record

FLEET = "fleet"


class Fleet(Record):
    """The fleet that a database belongs to: its one document, `_id` FLEET. A host belongs to one fleet for good."""

    id: str = Field(alias="_id")
    uuid: str


class Token(Record):
    """Who a token speaks for. `_id` is the SHA-256 of the token: the token itself is stored nowhere."""

    id: str = Field(alias="_id")
    user_id: str
    user_name: str
    project_id: str
    project_name: str
    roles: Sequence[str]
    expires_at: datetime | None = None


class AmqpUser(Record):
    """Who a broker user speaks for: the `user_id` property of a command, which the broker verified."""

    id: str = Field(alias="_id")
    user_id: str
    project_id: str
    roles: Sequence[str]


class Reply(Record):
    """The answer to a command message, kept so that a repeated `message_id` gets the first answer."""

    id: str = Field(alias="_id")
    type: str
    data: Mapping[str, Any]
    at: datetime
