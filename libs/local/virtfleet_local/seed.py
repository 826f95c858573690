"""What a fresh fleet knows: who may speak to it, and what can be made of it. Written straight into the database."""

import hashlib
import secrets
import uuid
from collections.abc import Iterable
from typing import Any

from pymongo.database import Database
from virtfleet_common.records import AmqpUser, Flavor, Image, Record, Token

from virtfleet_local.broker import SERVICE_USER

ADMIN_ROLES = ("admin", "member", "reader")
_MEMBER_ROLES = ("member", "reader")
# Ids of things that every local fleet has alike are derived from their names, so that a second seed changes nothing.
_NAMESPACE = uuid.UUID("6f1f3e55-5d5c-4a53-9d3b-7b9f6f6c2a10")


def new_token() -> str:
    """A secret for a person or a program; the database gets its hash alone."""
    return secrets.token_urlsafe(32)


def named_id(kind: str, name: str) -> str:
    """The id of a seeded project or user: a UUID in hex, as Keystone's are."""
    return uuid.uuid5(_NAMESPACE, f"{kind}:{name}").hex


def seed(database: Database[dict[str, Any]], tokens: dict[str, str], images: Iterable[Image]) -> None:
    """Write tokens (of `admin`, `member`, `other`), broker users, flavors and images; the same again is no change."""
    _put(database, "tokens", [_token(user, token) for user, token in tokens.items()])
    _put(database, "amqp_users", amqp_users())
    _put(database, "flavors", flavors())
    _put(database, "images", images)


def amqp_users() -> list[AmqpUser]:
    """Who the broker's users speak for. The services' own user is an administrator."""
    return [_amqp_user(SERVICE_USER, "admin"), _amqp_user("member", "member"), _amqp_user("other", "other")]


def flavors() -> list[Flavor]:
    """Small sizes: three guests of the smallest fit where one of a usual size would."""
    return [
        Flavor(id="1", name="m1.tiny", vcpus=1, ram_mb=96, disk_gb=1),
        Flavor(id="2", name="m1.small", vcpus=1, ram_mb=128, disk_gb=2),
        Flavor(id="3", name="m1.medium", vcpus=2, ram_mb=256, disk_gb=4),
    ]


def _token(user: str, token: str) -> Token:
    project = _project_of(user)
    return Token(
        id=hashlib.sha256(token.encode()).hexdigest(),
        user_id=named_id("user", user),
        user_name=user,
        project_id=named_id("project", project),
        project_name=project,
        roles=_roles_of(user),
    )


def _amqp_user(name: str, user: str) -> AmqpUser:
    project_id = named_id("project", _project_of(user))
    return AmqpUser(id=name, user_id=named_id("user", user), project_id=project_id, roles=_roles_of(user))


def _project_of(user: str) -> str:
    return {"admin": "admin", "member": "demo"}.get(user, user)


def _roles_of(user: str) -> tuple[str, ...]:
    return ADMIN_ROLES if user == "admin" else _MEMBER_ROLES


def _put(database: Database[dict[str, Any]], collection: str, records: Iterable[Record]) -> None:
    for record in records:
        document = record.document()
        database[collection].replace_one({"_id": document["_id"]}, document, upsert=True)
