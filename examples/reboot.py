"""Reboots an instance, and tells what comes of it: `python examples/reboot.py INSTANCE_ID`."""

import asyncio
import os
import sys

from virtfleet_common.client import FleetClient
from virtfleet_common.messages import RebootInstance


async def main(instance_id: str) -> None:
    async with (
        FleetClient(os.environ["FLEET_AMQP"]) as fleet,
        fleet.subscribed(f"instance.*.*.{instance_id}") as events,
    ):
        accepted = await fleet.command(RebootInstance(instance_id=instance_id, type="HARD"))
        print("accepted as", accepted.action_id)
        async for event in events:
            print(event.key, event.data["after"])
            if event.data["request_id"] == accepted.action_id and event.data["phase"] in {"end", "error"}:
                break


asyncio.run(main(sys.argv[1]))
