"""The clock of the machine."""

from datetime import UTC, datetime


class SystemClock:
    """Wall-clock time, aware UTC."""

    def now(self) -> datetime:
        """The current time."""
        return datetime.now(UTC)
