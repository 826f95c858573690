"""Answers where guests would be placed, and why not elsewhere, without claiming anything."""

from uuid import uuid4

from virtfleet_common.bus import COMMANDS, DIRECT, Bus, Delivery, Outgoing, QueueSpec
from virtfleet_common.errors import BadRequest, VirtfleetError
from virtfleet_common.messages import PLACEMENT_EXPLAIN, ExplainPlacement, PlacementExplained
from virtfleet_common.records import Flavor, Image
from virtfleet_common.store import Store

from virtfleet_scheduler.decide import decide_several
from virtfleet_scheduler.requests import request_for
from virtfleet_scheduler.rules import Rules
from virtfleet_scheduler.view import HostView

QUEUE = QueueSpec("virtfleet.placement", [(COMMANDS, PLACEMENT_EXPLAIN)], prefetch=4, ttl=10.0)
"""Requests for explanations; nobody waits longer than they are kept."""


class Explainer:
    """The consumer of the queue."""

    def __init__(self, store: Store, bus: Bus, view: HostView, rules: Rules) -> None:
        self._store = store
        self._bus = bus
        self._view = view
        self._rules = rules

    async def take(self, delivery: Delivery) -> None:
        """Decide, and send the answer to whoever asked."""
        asked: ExplainPlacement = delivery.read(ExplainPlacement)
        try:
            answer = await self.explain(asked)
        except VirtfleetError as error:
            answer = PlacementExplained(error=error.message)
        if delivery.reply_to:
            reply = Outgoing(
                DIRECT, delivery.reply_to, "virtfleet.placement.explained", answer, "virtfleet/scheduler",
                correlation_id=delivery.correlation_id, mandatory=False,
            )  # fmt: skip
            await self._bus.publish(reply)
        await delivery.settler.ack()

    async def explain(self, asked: ExplainPlacement) -> PlacementExplained:
        """One decision per guest, each choice counting for the next. Raises BadRequest for what is not there."""
        flavor, image = await self._flavor(asked.flavor), await self._image(asked.image)
        request = await request_for(
            self._store, instance_id=str(uuid4()), project_id=asked.project_id, flavor=flavor, image=image,
            hints=asked.hints, availability_zone=asked.availability_zone, excluded=asked.excluded,
            forced_host=asked.forced_host,
        )  # fmt: skip
        decisions = list(decide_several(await self._view.current(), request, self._rules, asked.count))
        hosts = [next(iter(decision.hosts), None) for decision in decisions]
        told = [one.explanation(host) for one, host in zip(decisions, hosts, strict=True)]
        return PlacementExplained(hosts=hosts, explanations=told)

    async def _flavor(self, name: str) -> Flavor:
        found = await self._store.flavors.get(name) or next(iter(await self._store.flavors.find({"name": name})), None)
        if found is None:
            raise BadRequest(f"Flavor {name} could not be found.", rule="flavor_exists")
        return found

    async def _image(self, name: str | None) -> Image | None:
        if name is None:
            return None
        found = await self._store.images.get(name) or next(iter(await self._store.images.find({"name": name})), None)
        if found is None:
            raise BadRequest(f"Image {name} could not be found.", rule="image_exists")
        return found
