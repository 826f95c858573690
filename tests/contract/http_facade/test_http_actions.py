"""Actions on servers."""

import asyncio
from typing import Any

import pytest
from virtfleet_common.states import TaskState, VmState

from .api import Api, error_of


@pytest.mark.parametrize(
    ("body", "task_state"),
    [
        ({"reboot": {"type": "SOFT"}}, TaskState.REBOOTING),
        ({"reboot": {"type": "Hard"}}, TaskState.REBOOTING_HARD),
        ({"os-stop": None}, TaskState.POWERING_OFF),
        ({"pause": {}}, TaskState.PAUSING),
        ({"suspend": None}, TaskState.SUSPENDING),
    ],
)
async def test_an_action_is_stored_before_it_is_answered(api: Api, body: Any, task_state: TaskState) -> None:
    guest = await api.instance()
    answer = await api.act(guest, body)
    assert (answer.status_code, answer.content) == (202, b"")
    stored = await api.store.instances.get(guest.id)
    assert stored is not None
    assert stored.action is not None
    assert stored.task_state is task_state
    assert stored.action.id == answer.headers["x-openstack-request-id"]


async def test_an_action_in_the_wrong_state_is_a_conflict_that_names_what_is_wrong(api: Api) -> None:
    guest = await api.instance(vm_state=VmState.STOPPED)
    status, key, message = error_of(await api.act(guest, {"reboot": {"type": "SOFT"}}))
    assert (status, key) == (409, "conflictingRequest")
    assert message == f"Cannot 'reboot' instance {guest.id} while it is in vm_state stopped"


async def test_a_locked_server_is_its_owners_conflict_and_an_admins_business(api: Api) -> None:
    guest = await api.instance()
    assert (await api.act(guest, {"lock": {"locked_reason": "why not"}}, version="2.73")).status_code == 202
    shown = (await api.ask("GET", f"/v2.1/servers/{guest.id}", version="2.73")).json()["server"]
    assert (shown["locked"], shown["locked_reason"]) == (True, "why not")
    assert error_of(await api.act(guest, {"os-stop": None}))[2] == f"Instance {guest.id} is locked"
    assert (await api.act(guest, {"os-stop": None}, who="admin")).status_code == 202


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "exactly one action"),
        (b'{"pause": null, "unpause": null}', "exactly one action"),
        (b'{"createImage": {"name": "x"}}', "There is no such action: createImage"),
        (b'{"reboot": "HARD"}', "reboot"),
        (b'{"reboot": {}}', "'type' is a required property"),
        (b'{"reboot": {"type": "WARM"}}', "Invalid input for field/attribute type. Value: 'WARM'."),
        (b'{"reboot": {"type": "HARD", "now": true}}', "'now' was unexpected"),
        (b'{"lock": {"locked_reason": "not before 2.73"}}', "'locked_reason' was unexpected"),
        (b'{"pause": 5}', "pause"),
    ],
)
async def test_a_bad_action_is_refused_clearly_and_changes_nothing(api: Api, content: bytes, says: str) -> None:
    guest = await api.instance()
    headers = {"X-Auth-Token": api.tokens["member"]}
    answer = await api.http.post(f"/v2.1/servers/{guest.id}/action", content=content, headers=headers)
    status, key, message = error_of(answer)
    assert (status, key) == (400, "badRequest")
    assert says in message
    assert await api.store.instances.get(guest.id) == guest


async def test_a_console_log_ends_without_a_newline(api: Api) -> None:
    guest = await api.instance(name="talker")
    for asked, output in [
        ({}, "booting talker\nready"),
        ({"length": "1"}, "ready"),
        ({"length": -1}, "booting talker\nready"),
    ]:
        assert (await api.act(guest, {"os-getConsoleOutput": asked})).json() == {"output": output}
    nowhere = await api.instance(host=None)
    assert (await api.act(nowhere, {"os-getConsoleOutput": {}})).status_code == 409


async def test_two_hundred_conflicting_actions_have_one_winner(api: Api) -> None:
    guest = await api.instance()
    answers = await asyncio.gather(*(api.act(guest, {"os-stop": None}) for _ in range(200)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(202), statuses.count(409)) == (1, 199)
