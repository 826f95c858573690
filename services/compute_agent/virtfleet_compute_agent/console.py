"""Answers requests for a guest's console log."""

from virtfleet_common.bus import COMMANDS, DIRECT, Bus, Delivery, Outgoing, QueueSpec
from virtfleet_common.errors import Faulty
from virtfleet_common.messages import ConsoleReply, ConsoleRequest
from virtfleet_common.ports import Hypervisor

_KEPT = 10.0


def queue(host: str) -> QueueSpec:
    """Requests for the consoles of one host; nobody waits longer than they are kept."""
    return QueueSpec(f"virtfleet.console.{host}", [(COMMANDS, f"console.{host}")], prefetch=8, ttl=_KEPT)


class Consoles:
    """The consumer of the queue."""

    def __init__(self, host: str, hypervisor: Hypervisor, bus: Bus) -> None:
        self._source = f"virtfleet/compute/{host}"
        self._hypervisor = hypervisor
        self._bus = bus

    async def take(self, delivery: Delivery) -> None:
        """Read the console and send it to whoever asked."""
        request: ConsoleRequest = delivery.read(ConsoleRequest)
        try:
            output = await self._hypervisor.console_output(request.instance_id, request.length)
            answer = ConsoleReply(output=output)
        except Faulty as error:
            answer = ConsoleReply(error=error.message)
        if delivery.reply_to:
            reply = Outgoing(
                DIRECT, delivery.reply_to, "virtfleet.console.output", answer, self._source,
                correlation_id=delivery.correlation_id, mandatory=False,
            )  # fmt: skip
            await self._bus.publish(reply)
        await delivery.settler.ack()
