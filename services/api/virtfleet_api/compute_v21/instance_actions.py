"""What was done to a server: its actions, newest first, and the steps of each."""

from starlette.responses import Response
from virtfleet_common.errors import NotFound
from virtfleet_common.records import ActionEvent, ActionRecord, Instance

from virtfleet_api.answers import answer
from virtfleet_api.compute_v21.shapes import Shape, cut, host_id, micros, next_links
from virtfleet_api.context import Call
from virtfleet_api.routing import Endpoint
from virtfleet_api.validation import time_argument


async def list_actions(call: Call) -> Response:
    """The actions of a server."""
    server = await _found(call)
    actions = await call.store.actions.find(server.id)
    shape: Shape = {}
    if call.version >= 58:
        actions = [action for action in actions if _is_asked_for(call, action)]
        window = cut([action.id for action in actions], call)
        is_more = window.stop < len(actions)
        actions = actions[window]
        if is_more and actions:
            shape["links"] = next_links(call, f"servers/{server.id}/os-instance-actions", actions[-1].id)
    return answer({"instanceActions": [action_view(action, call) for action in actions]} | shape)


async def show_action(call: Call) -> Response:
    """One action of a server, with its steps."""
    server = await _found(call)
    action = await call.store.actions.get(call.param("request_id"))
    if action is None or action.instance_id != server.id:
        message = f"Action for request_id {call.param('request_id')} on instance {server.id} not found"
        raise NotFound(message, rule="action_exists")
    shape = action_view(action, call)
    if call.who.is_admin or call.version >= 51:
        steps = sorted(action.events.values(), key=lambda step: (step.start is None, step.start), reverse=True)
        shape["events"] = [event_view(step, server, call) for step in steps]
    return answer({"instanceAction": shape})


async def _found(call: Call) -> Instance:
    """The server; from 2.21 on also one that was deleted."""
    id_ = call.param("id")
    return await (find_server(call, id_) if call.version >= 21 else call.services.acceptor.find(call.who, id_))


async def find_server(call: Call, id_: str) -> Instance:
    """A server that the caller may see, be it deleted. Raises NotFound."""
    found = await call.store.instances.get(id_)
    if found is None or not (call.who.is_admin or found.project_id == call.who.project_id):
        raise NotFound(f"Instance {id_} could not be found.", rule="instance_exists")
    return found


def _is_asked_for(call: Call, action: ActionRecord) -> bool:
    since = time_argument("changes-since", call.query.get("changes-since"))
    before = time_argument("changes-before", call.query.get("changes-before")) if call.version >= 66 else None
    updated = action.finish or action.start
    if updated is None:
        return since is None and before is None
    return (since is None or updated >= since) and (before is None or updated <= before)


def action_view(action: ActionRecord, call: Call) -> Shape:
    """An action: pure, from its record."""
    shape: Shape = {
        "action": action.action,
        "instance_uuid": action.instance_id,
        "request_id": action.id,
        "user_id": action.user_id,
        "project_id": action.project_id,
        "start_time": micros(action.start),
        "message": action.message,
    }
    return shape | ({"updated_at": micros(action.finish or action.start)} if call.version >= 58 else {})


def event_view(step: ActionEvent, server: Instance, call: Call) -> Shape:
    """A step of an action: pure, from its record. Where it ran and how it broke is for admins."""
    shape: Shape = {
        "event": step.event,
        "start_time": micros(step.start),
        "finish_time": micros(step.finish),
        "result": step.result,
        "traceback": step.traceback if call.who.is_admin else None,
    }
    if call.version >= 62:
        shape["hostId"] = host_id(server.project_id, step.host)
        if call.who.is_admin:
            shape["host"] = step.host
    if call.version >= 84:
        shape["details"] = step.details if call.who.is_admin else None
    return shape


_ACTIONS = "/servers/{id}/os-instance-actions"
ENDPOINTS = (
    Endpoint("GET", _ACTIONS, list_actions, "read"),
    Endpoint("GET", _ACTIONS + "/{request_id}", show_action, "read"),
)
