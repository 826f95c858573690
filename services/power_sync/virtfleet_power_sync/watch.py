"""How long this process has looked on without a gap: what it missed meanwhile says nothing of others."""

from datetime import datetime, timedelta


class Watch:
    """`since` when it has looked at least every `longest_gap` seconds. A start, a standstill, a database that was away
    and a clock that was set are gaps."""

    def __init__(self, now: datetime, longest_gap: float) -> None:
        self._longest_gap = timedelta(seconds=longest_gap)
        self._looked_at = self.since = now

    def look(self, now: datetime) -> None:
        """It looks now."""
        if abs(now - self._looked_at) > self._longest_gap:
            self.since = now
        self._looked_at = now

    def begin_anew(self, now: datetime) -> None:
        """What it sees now is nothing to go by."""
        self._looked_at = self.since = now
