"""Where a guest comes to be: a host that fails is not the end, and when no host is left the action says why."""

import pytest
from virtfleet_common.messages import CreateInstance
from virtfleet_common.states import VmState

from tests.witness import Chronicle, ended_once, record_is_true
from tests.world import World

pytestmark = pytest.mark.fleet


async def test_a_guest_that_one_host_cannot_make_is_made_by_another(crowd: World) -> None:
    chronicle = Chronicle(crowd.fleet)
    crowd.arm("hypervisor.define", "raise")
    accepted = await crowd.client.command(CreateInstance(name="wanderer", flavor="m1.tiny"))
    record = await crowd.action(accepted.action_id)
    steps = [record.events[number] for number in sorted(record.events, key=int)]
    assert [(step.event, step.result) for step in steps] == [
        ("schedule_instances", "Success"),
        ("compute__do_build_and_run_instance", "Error"),
        ("schedule_instances", "Success"),
        ("compute__do_build_and_run_instance", "Success"),
    ]
    failed, made = steps[1], steps[3]
    assert "failpoint hypervisor.define" in (failed.details or "")
    instance = await crowd.instance(accepted.instance_ids[0])
    assert (instance.vm_state, instance.host, instance.fault) == (VmState.ACTIVE, made.host, None)
    assert {failed.host, made.host} == set(crowd.fleet.file.hosts)
    await ended_once(crowd, chronicle, {accepted.action_id})
    await record_is_true(crowd)


async def test_when_no_host_has_room_the_action_explains_it(crowd: World) -> None:
    chronicle = Chronicle(crowd.fleet)
    giant = {"flavor": {"name": "giant", "ram": 10_000_000, "vcpus": 1, "disk": 1, "id": "giant"}}
    assert (await crowd.ask("POST", "/v2.1/flavors", giant, who="admin")).status_code == 200
    try:
        accepted = await crowd.client.command(CreateInstance(name="too big", flavor="giant"))
    finally:
        await crowd.ask("DELETE", "/v2.1/flavors/giant", who="admin")
    record = await crowd.action(accepted.action_id)
    assert (record.result, record.message) == ("Error", "No valid host was found.")
    instance = await crowd.instance(accepted.instance_ids[0])
    assert (instance.vm_state, instance.host) == (VmState.ERROR, None)
    assert instance.fault is not None
    assert instance.fault.code == "no_valid_host"
    explanation = instance.fault.facts["explanation"]
    (refusal,) = explanation["refused"]
    assert (explanation["considered"], refusal["filter"], refusal["count"]) == (2, "not_enough_ram", 2)
    assert refusal["sample"][0]["needed"] == 10_000_000
    await ended_once(crowd, chronicle, {accepted.action_id})
    await record_is_true(crowd)
    shown = (await crowd.ask("GET", f"/v2.1/servers/{instance.id}")).json()["server"]
    assert (shown["status"], shown["fault"]["message"]) == ("ERROR", "No valid host was found.")


async def test_a_guest_is_never_made_on_a_host_that_is_switched_off(crowd: World) -> None:
    assert await crowd.store.hosts.set_fields("host-1", {"is_enabled": False})
    try:
        accepted = await crowd.client.command(CreateInstance(name="crowd", flavor="m1.tiny", max_count=5))
        for id_ in accepted.instance_ids:
            (create,) = await crowd.store.actions.find(id_)
            await crowd.action(create.id)
            assert (await crowd.instance(id_)).host == "host-2"
    finally:
        await crowd.store.hosts.set_fields("host-1", {"is_enabled": True})
