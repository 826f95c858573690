"""Who may speak to the fleet: an operator gives and takes tokens (HTTP) and broker users (AMQP).

    python -m virtfleet_api.grants token  --user alice --project demo --role member     prints a new token, once
    python -m virtfleet_api.grants amqp   --user billing --project demo --role member   a broker user of that name
    python -m virtfleet_api.grants revoke TOKEN|BROKER-USER

Reads `VIRTFLEET_MONGODB_URL` and `VIRTFLEET_DATABASE`, as the services do. The database keeps a token's SHA-256 alone.
The password and the permissions of a broker user are the broker's own business (docs/deploy.md).
"""

import argparse
import asyncio
import secrets
import sys
from uuid import UUID, uuid5

from virtfleet_common.records import AmqpUser, Token
from virtfleet_common.settings import CommonSettings
from virtfleet_common.store import Store

from virtfleet_api.auth import token_hash
from virtfleet_api.policy import Role

_NAMESPACE = UUID("6f1f3e55-5d5c-4a53-9d3b-7b9f6f6c2a10")
"""Ids of users and projects are made from their names, so that a name means the same in every grant."""


def named_id(kind: str, name: str) -> str:
    """The id of a user or project: a UUID in hex, as Keystone's are."""
    return uuid5(_NAMESPACE, f"{kind}:{name}").hex


def roles_up_to(role: Role) -> list[str]:
    """A role, and those it includes."""
    return [one.value for one in list(Role)[: list(Role).index(role) + 1]]


async def give_token(store: Store, user: str, project: str, role: Role) -> str:
    """A new token."""
    token = secrets.token_urlsafe(32)
    record = Token(
        id=token_hash(token),
        user_id=named_id("user", user),
        user_name=user,
        project_id=named_id("project", project),
        project_name=project,
        roles=roles_up_to(role),
    )
    await store.tokens.replace(record)
    return token


async def give_amqp(store: Store, user: str, project: str, role: Role) -> str:
    """A broker user may send commands, for a project. Returns the user's name."""
    ids = {"user_id": named_id("user", user), "project_id": named_id("project", project)}
    await store.amqp_users.replace(AmqpUser(id=user, roles=roles_up_to(role), **ids))
    return user


async def revoke(store: Store, what: str) -> str:
    """Take back a token or a broker user. The api believes in it for five more seconds. Returns what it was."""
    if await store.tokens.delete(token_hash(what)):
        return "The token is revoked."
    return "The broker user is revoked." if await store.amqp_users.delete(what) else "There is no such grant."


async def _run(given: argparse.Namespace) -> str:
    store = Store.connect(CommonSettings())
    try:
        if given.command == "revoke":
            return await revoke(store, given.what)
        give = give_token if given.command == "token" else give_amqp
        return await give(store, given.user, given.project, Role(given.role))
    finally:
        store.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m virtfleet_api.grants")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("token", "amqp"):
        command = commands.add_parser(name)
        command.add_argument("--user", required=True)
        command.add_argument("--project", required=True)
        command.add_argument("--role", choices=[role.value for role in Role], default=Role.MEMBER.value)
    commands.add_parser("revoke").add_argument("what", metavar="TOKEN|BROKER-USER")
    return parser


def main() -> None:
    """The commands of the module's text."""
    sys.stdout.write(f"{asyncio.run(_run(_parser().parse_args()))}\n")


if __name__ == "__main__":
    main()
