"""The floor: a bare loop that makes as many confirmed publishes and majority writes as an action does, and no more."""

import asyncio
import time
from uuid import uuid4

import aio_pika
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import WriteConcern


async def bare_loop(
    amqp_url: str, mongodb_url: str, *, publishes: int, writes: int, in_flight: int, total: int
) -> float:
    """Rounds per second of `writes` majority writes to one document and `publishes` confirmed publishes to a quorum
    queue, `in_flight` rounds at once, in one process."""
    client: AsyncIOMotorClient[dict[str, object]] = AsyncIOMotorClient(mongodb_url)
    rows = client["virtfleet_floor"].get_collection("rows", write_concern=WriteConcern("majority"))
    connection = await aio_pika.connect(amqp_url)
    try:
        channel = await connection.channel(publisher_confirms=True)
        queue = await channel.declare_queue(
            f"floor-{uuid4().hex}", durable=True, arguments={"x-queue-type": "quorum", "x-max-length": 1000}
        )
        exchange = channel.default_exchange
        await rows.insert_many([{"_id": worker, "n": 0} for worker in range(in_flight)])

        async def worker(number: int) -> None:
            for _ in range(total // in_flight):
                for _ in range(writes):
                    await rows.find_one_and_update({"_id": number}, {"$inc": {"n": 1}})
                for _ in range(publishes):
                    message = aio_pika.Message(b"x" * 200, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                    await exchange.publish(message, queue.name)

        began = time.perf_counter()
        await asyncio.gather(*(worker(number) for number in range(in_flight)))
        seconds = time.perf_counter() - began
        await queue.delete(if_empty=False, if_unused=False)
        return total / seconds
    finally:
        await connection.close()
        await client.drop_database("virtfleet_floor")
        client.close()
