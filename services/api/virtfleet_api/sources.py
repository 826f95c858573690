"""What the facade asks of the broker's side: events to stream, console logs, which the agents own,
and what a scheduler would decide."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol

from virtfleet_common.messages import ExplainPlacement, PlacementExplained
from virtfleet_common.records import Instance


class FleetEvent(Protocol):
    """One event as the bus delivered it."""

    @property
    def id(self) -> str:
        """The same in every copy of the event."""

    @property
    def type(self) -> str:
        """The CloudEvents type."""

    @property
    def key(self) -> str:
        """The routing key."""

    @property
    def data(self) -> Mapping[str, Any]:
        """What happened."""

    @property
    def time(self) -> datetime:
        """When it was published."""


class EventSource(Protocol):
    """Where events come from."""

    def subscribe(self, patterns: Sequence[str]) -> AbstractAsyncContextManager[AsyncIterator[FleetEvent]]:
        """The events whose key matches one of these topic patterns, from the moment the context is entered.

        Leaving the context frees the subscription. Raises BusUnavailable on entering.
        """
        ...


class Consoles(Protocol):
    """Where console logs come from."""

    async def output(self, instance: Instance, length: int | None) -> str:
        """The last `length` lines (None: all that is kept). Raises Faulty if the host does not answer in time."""
        ...


class Placements(Protocol):
    """Where placements are decided."""

    async def explain(self, question: ExplainPlacement) -> PlacementExplained:
        """What a scheduler would decide now. Raises BadRequest where it says why there is no answer, Faulty if none
        answers in time."""
        ...
