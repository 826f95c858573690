"""The guest's serial console log: kept across starts, bounded by rotation, read as plain text. Blocking functions."""

import re
from pathlib import Path

KEPT_ROTATIONS = 3
DEFAULT_BYTES = 100 * 1024
LARGEST_BYTES = 1024 * 1024
_ESCAPE_SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def rotate(log: Path) -> None:
    """Make way for the next start's log: `console.log` becomes `.1`, `.1` becomes `.2`, the oldest goes.

    An empty log is not worth a rotation, so that doing it twice loses nothing.
    """
    if not log.exists() or log.stat().st_size == 0:
        return
    for number in range(KEPT_ROTATIONS - 1, 0, -1):
        older = _rotation(log, number)
        if older.exists():
            older.replace(_rotation(log, number + 1))
    log.replace(_rotation(log, 1))


def read_tail(log: Path, length: int | None) -> str:
    """The last `length` lines (None or negative: the last 100 KiB) of the log and its rotations, without control
    characters and trailing newline. Never more than 1 MiB."""
    if length is None or length < 0:
        return clean(_read_bytes(log, DEFAULT_BYTES))
    lines = clean(_read_bytes(log, LARGEST_BYTES)).split("\n")
    return "\n".join(lines[-length:]) if length else ""


def clean(raw: bytes) -> str:
    """Console bytes as text that is safe to show: no escape sequences, no control characters but newline and tab."""
    text = _ESCAPE_SEQUENCES.sub("", raw.decode("utf-8", errors="replace"))
    return _CONTROL_CHARACTERS.sub("", text).rstrip("\n")


def _read_bytes(log: Path, limit: int) -> bytes:
    """The last `limit` bytes of the log, going back into rotations as far as needed."""
    parts: list[bytes] = []
    for path in _newest_first(log):
        part = _tail_of(path, limit)
        limit -= len(part)
        if part and parts and not part.endswith(b"\n"):
            part += b"\n"
        parts.append(part)
        if limit <= 0:
            break
    return b"".join(reversed(parts))


def _newest_first(log: Path) -> list[Path]:
    """The log, then its rotations by number: ours start at .1, those that virtlogd makes of a large log at .0."""
    rotations = [path for path in log.parent.glob(f"{log.name}.*") if path.suffix[1:].isdigit()]
    return [log, *sorted(rotations, key=lambda path: int(path.suffix[1:]))]


def _tail_of(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""


def _rotation(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")
