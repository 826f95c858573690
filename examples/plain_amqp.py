"""The same from any AMQP client, without a line of Virtfleet: `python examples/plain_amqp.py INSTANCE_ID`."""

import asyncio
import json
import os
import sys
from uuid import uuid4

import aio_pika


async def main(instance_id: str) -> None:
    connection = await aio_pika.connect(os.environ["FLEET_AMQP"])
    async with connection, connection.channel() as channel:
        replies = await channel.declare_queue(exclusive=True)
        events = await channel.declare_queue(exclusive=True)
        await events.bind("virtfleet.events", f"instance.*.*.{instance_id}")
        commands = await channel.get_exchange("virtfleet.commands", ensure=False)
        id_ = uuid4().hex
        command = aio_pika.Message(
            json.dumps({"instance_id": instance_id, "type": "HARD"}).encode(),
            content_type="application/json",
            headers={
                "ce-specversion": "1.0",
                "ce-id": id_,
                "ce-source": "my-program",
                "ce-type": "virtfleet.instance.reboot",
            },
            message_id=id_,  # sent again under the same id, it is answered with the first answer
            user_id=os.environ["FLEET_AMQP"].split("//")[1].split(":")[0],  # the broker verifies it
            reply_to=replies.name,
            correlation_id="42",
        )
        await commands.publish(command, "instance.reboot", mandatory=True)
        async with replies.iterator(timeout=10) as answers:
            answer = await anext(answers)
            print(answer.headers["ce-type"], answer.correlation_id, answer.body.decode())
        async with events.iterator(timeout=60) as told:
            async for event in told:
                print(event.routing_key, json.loads(event.body)["after"])
                if (event.routing_key or "").split(".")[2] in {"end", "error"}:
                    break


asyncio.run(main(sys.argv[1]))
