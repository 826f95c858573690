"""Counts the write commands that the database confirmed."""

from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent

from virtfleet_common.telemetry import WRITES

_COUNTERS = {name: WRITES.labels(name) for name in ("insert", "update", "delete", "findAndModify")}


class WriteCounter(CommandListener):
    """Called by the driver for every command, so it does next to nothing."""

    def started(self, event: CommandStartedEvent) -> None:
        """Not counted: it may fail."""

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """One more, if it was a write."""
        counter = _COUNTERS.get(event.command_name)
        if counter is not None:
            counter.inc()

    def failed(self, event: CommandFailedEvent) -> None:
        """Not counted."""
