"""`POST /servers/{id}/action`: one row per action; the rules about states are the acceptor's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, Field
from starlette.responses import Response
from virtfleet_common.actions import ACTIONS
from virtfleet_common.errors import BadRequest, Conflict, NotFound

from virtfleet_api.answers import answer, empty
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import Body, Flag, Whole, validated

Args: TypeAlias = Mapping[str, Any]


class Reboot(Body):
    """`{"reboot": {"type": "HARD"}}`"""

    type: Literal["SOFT", "Soft", "soft", "HARD", "Hard", "hard"]


class Lock(Body):
    """`{"lock": {"locked_reason": "..."}}`, the reason since 2.73."""

    SINCE: ClassVar[Mapping[str, int]] = {"locked_reason": 73}

    locked_reason: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class Resize(Body):
    """`{"resize": {"flavorRef": "2"}}`; a client may name the flavor by its address."""

    flavor: Annotated[str | int, Field(alias="flavorRef")]
    disk_config: Annotated[Literal["AUTO", "MANUAL"] | None, Field(alias="OS-DCF:diskConfig")] = None


class Migrate(Body):
    """`{"migrate": null}`; `{"migrate": {"host": "..."}}` since 2.56."""

    SINCE: ClassVar[Mapping[str, int]] = {"host": 56}

    host: Annotated[str, Field(min_length=1, max_length=255)] | None = None


class Evacuate(Body):
    """`{"evacuate": {"host": "..."}}`. A named host is verified, whatever `force` says; passwords are not set."""

    SINCE: ClassVar[Mapping[str, int]] = {"force": 29}
    UNTIL: ClassVar[Mapping[str, int]] = {"force": 67, "onSharedStorage": 13}
    NEEDED_UNTIL: ClassVar[Mapping[str, int]] = {"onSharedStorage": 13}

    host: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    admin_pass: Annotated[str | None, Field(alias="adminPass")] = None
    force: Flag | None = None
    on_shared_storage: Annotated[Flag | None, Field(alias="onSharedStorage")] = None


class ResetState(Body):
    """`{"os-resetState": {"state": "active"}}`"""

    state: Literal["active", "error"]


class ConsoleOutput(Body):
    """`{"os-getConsoleOutput": {"length": 50}}`; without a length, or with -1: all of it."""

    length: Annotated[Whole, Field(ge=-1)] | None = None


class Nothing(Body):
    """`{"pause": null}`; `{}` does as well."""


def _no_args(_: Any) -> Args:
    return {}


def _evacuate_args(body: Any) -> Args:
    said = {"host": body.host, "on_shared_storage": body.on_shared_storage, "force": body.force}
    return {name: value for name, value in said.items() if value is not None} | (
        {"sets_password": True} if body.admin_pass is not None else {}
    )


def _reboot_name(body: Any) -> str:
    return "reboot_hard" if body.type.upper() == "HARD" else "reboot_soft"


@dataclass(frozen=True, slots=True)
class Row:
    """How one action reads in a body: its name in ACTIONS, its model, and the arguments it gives the acceptor."""

    name: str | Callable[[Any], str]
    model: type[BaseModel] = Nothing
    args: Callable[[Any], Args] = _no_args


ROWS: Mapping[str, Row] = {
    "reboot": Row(_reboot_name, Reboot),
    "os-start": Row("start"),
    "os-stop": Row("stop"),
    "pause": Row("pause"),
    "unpause": Row("unpause"),
    "suspend": Row("suspend"),
    "resume": Row("resume"),
    "lock": Row("lock", Lock, lambda body: {"locked_reason": body.locked_reason}),
    "unlock": Row("unlock"),
    "resize": Row("resize", Resize, lambda body: {"flavor": str(body.flavor).rstrip("/").rsplit("/", 1)[-1]}),
    "migrate": Row("migrate", Migrate, lambda body: {"host": body.host} if body.host else {}),
    "confirmResize": Row("confirm_resize"),
    "revertResize": Row("revert_resize"),
    "evacuate": Row("evacuate", Evacuate, _evacuate_args),
    "os-resetState": Row("reset_state", ResetState, lambda body: {"state": body.state}),
}


class ActionBody(Body):
    """One action and its arguments: one key of reboot, os-start, os-stop, pause, unpause, suspend, resume, lock,
    unlock, resize, migrate, evacuate, confirmResize, revertResize, os-resetState, os-getConsoleOutput."""


async def act(call: Call) -> Response:
    """Accept an action on a server; the answer's request id is the action's id."""
    body = await call.json()
    if len(body) != 1:
        raise BadRequest("Malformed request body: it needs exactly one action.", rule="body.one_action")
    ((key, content),) = body.items()
    if key == "os-getConsoleOutput":
        return await _console(call, content)
    row = ROWS.get(key)
    if row is None:
        raise BadRequest(f"There is no such action: {key}", rule="action_exists")
    return await _accept(call, row, content, key)


async def _accept(call: Call, row: Row, content: Any, key: str) -> Response:
    asked = _arguments(call, row, content, key)
    name = row.name if isinstance(row.name, str) else row.name(asked)
    await call.services.acceptor.act(call.who, call.param("id"), name, row.args(asked), action_id=call.request_id)
    if name == "evacuate" and call.version < 14:
        return answer({"adminPass": asked.admin_pass or ""})
    return empty(ACTIONS[name].status)


def _arguments(call: Call, row: Row, content: Any, key: str) -> Any:
    try:
        return validated(row.model, {} if content is None else content, call.version)
    except BadRequest as error:
        raise BadRequest(f"{error.message} (in '{key}')", rule=error.rule) from None


async def _console(call: Call, content: Any) -> Response:
    """The console log, which the instance's host keeps."""
    asked = validated(ConsoleOutput, content or {}, call.version)
    server = await call.services.acceptor.find(call.who, call.param("id"))
    if server.host is None:
        raise Conflict(f"Instance {server.id} is not ready", rule="console.host")
    if call.services.consoles is None:
        raise NotFound("Unable to get console log: no host can be asked.", rule="console.served")
    length = None if asked.length in (None, -1) else asked.length
    output = await call.services.consoles.output(server, length)
    return answer({"output": output.removesuffix("\n")})


ENDPOINTS = (Endpoint("POST", "/servers/{id}/action", act, "servers:action", body=ActionBody),)
