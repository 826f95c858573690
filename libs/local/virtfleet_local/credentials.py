"""How to speak to a local fleet, in the forms that a shell and OpenStack's clients read. Pure."""

import json
from typing import Any, Literal

from virtfleet_local.layout import FleetFile

User = Literal["member", "other", "admin"]
_PROJECTS = {"member": "demo", "other": "other", "admin": "admin"}


def token_of(file: FleetFile, user: User) -> str:
    """The user's token."""
    return {"member": file.member_token, "other": file.other_member_token, "admin": file.token}[user]


def amqp_url_of(file: FleetFile, user: User) -> str:
    """The user's address at the broker. The services' own user speaks for the administrator."""
    return {"member": file.member_amqp_url, "other": file.other_member_amqp_url, "admin": file.amqp_url}[user]


def shell(file: FleetFile, user: User) -> str:
    """Lines for `eval`: FLEET_API, FLEET_TOKEN and FLEET_AMQP."""
    known = {
        "FLEET_API": f"{file.api_url}/v2.1",
        "FLEET_TOKEN": token_of(file, user),
        "FLEET_AMQP": amqp_url_of(file, user),
    }
    return "\n".join(f"export {name}='{value}'" for name, value in known.items())


def clouds(file: FleetFile) -> str:
    """A clouds.yaml (JSON is YAML): `virtfleet` and `virtfleet-admin` by name and password, `virtfleet-token`."""
    known = {
        "virtfleet": _with_login(file, "member"),
        "virtfleet-admin": _with_login(file, "admin"),
        "virtfleet-token": {
            "auth_type": "v3token",
            "region_name": "RegionOne",
            "auth": {
                "auth_url": f"{file.api_url}/identity",
                "token": file.member_token,
                "project_name": _PROJECTS["member"],
                "project_domain_name": "Default",
            },
        },
    }
    return json.dumps({"clouds": known}, indent=2)


def _with_login(file: FleetFile, user: User) -> dict[str, Any]:
    return {
        "region_name": "RegionOne",
        "auth": {
            "auth_url": f"{file.api_url}/identity",
            "username": user,
            "password": token_of(file, user),
            "project_name": _PROJECTS[user],
            "user_domain_name": "Default",
            "project_domain_name": "Default",
        },
    }
