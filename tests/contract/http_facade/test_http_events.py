"""The event stream."""

import asyncio

from .api import Api, Listener


async def test_events_are_streamed_to_whom_they_concern_and_a_client_that_left_is_forgotten(api: Api) -> None:
    listener = Listener(api, "member")
    await asyncio.wait_for(api.radio.tuned_in.wait(), 5)
    api.radio.say("instance.reboot.start.other", {"project_id": "other"})
    api.radio.say("host.one.down", {"host": "one"})
    api.radio.say("instance.reboot.end.mine", {"project_id": api.project, "instance_id": "mine"})
    event = await listener.next()
    assert (event["key"], event["subject"], event["specversion"]) == ("instance.reboot.end.mine", "mine", "1.0")
    assert api.radio.listeners[0][0] == ("instance.#",)
    await listener.leave()
    assert api.radio.listeners == []


async def test_the_events_of_one_instance_are_for_those_who_may_see_it(api: Api) -> None:
    guest = await api.instance()
    assert (await api.ask("GET", f"/events?instance={guest.id}", who="stranger")).status_code == 404
    listener = Listener(api, "admin", f"instance={guest.id}")
    await asyncio.wait_for(api.radio.tuned_in.wait(), 5)
    assert api.radio.listeners[0][0] == (f"instance.*.*.{guest.id}",)
    await listener.leave()
