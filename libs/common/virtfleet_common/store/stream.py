"""What the feeds share: reading a change stream in gulps."""

from typing import Any

LONGEST_WAIT_MS = 1000
"""How long the database holds a question for changes when there are none."""


async def told(stream: Any) -> list[dict[str, Any]]:
    """The changes that are there, waited for up to a second; all that came with one answer of the database."""
    try:
        changes = [await stream.next()]
    except StopAsyncIteration:
        return []
    while stream._buffer_size():  # what is here needs no more waiting; motor has no public word for it
        changes.append(await stream.next())
    return changes
