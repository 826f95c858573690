"""The cache of base images: fetched once, verified, never half there. What is in it is named by its checksum."""

import asyncio
import hashlib
import os
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from virtfleet_common.errors import ImageFault
from virtfleet_common.records import Image

from virtfleet_compute_agent.hypervisor.layout import Layout, Source, base_of, sources_of
from virtfleet_compute_agent.hypervisor.pool import Pool
from virtfleet_compute_agent.hypervisor.qemu_img import describe

_CHUNK = 1024 * 1024
_PART = ".part-"
_SILENCE = 60.0  # seconds without a byte after which a server counts as dead


class ImageCache:
    """Has images in the cache. `limit` is the longest wait in seconds for one file."""

    def __init__(self, layout: Layout, pool: Pool, limit: float) -> None:
        self._layout = layout
        self._pool = pool
        self._limit = limit
        self._flights: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def fetch(self, image: Image, *, is_base_needed: bool = True) -> None:
        """Have every file of `image` in the cache, or all but its base. Raises ImageFault; a bad file is not kept."""
        base = base_of(image)
        for source in sources_of(image):
            if source != base:
                await self._fetch(source, None)
            elif is_base_needed:
                await self._fetch(source, image.disk_format)

    def remove_leftovers(self) -> None:
        """Remove what a killed agent was still fetching. Blocking; only before the first fetch."""
        for part in self._layout.images.glob(f"*{_PART}*"):
            part.unlink(missing_ok=True)

    async def _fetch(self, source: Source, disk_format: str | None) -> None:
        """Whoever comes second waits for the first, and finds the file."""
        path = self._layout.cached(source)
        if path.exists():
            return
        async with self._flights[path]:
            if path.exists():
                return
            part = path.with_name(f"{path.name}{_PART}{uuid4().hex}")
            try:
                await self._pool.run(lambda: _download(source, part, self._limit), self._limit, "fetch_image")
                if disk_format is not None:
                    await _refuse_references(part, disk_format, source, self._limit)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        self._flights.pop(path, None)


def _download(source: Source, part: Path, limit: float) -> None:
    """Copy the source to `part`, synced to disk. Raises ImageFault."""
    part.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    deadline = time.monotonic() + limit
    try:
        with urllib.request.urlopen(_url(source.location), timeout=_SILENCE) as remote, part.open("wb") as local:
            while chunk := remote.read(_CHUNK):
                _in_time(deadline, source)
                digest.update(chunk)
                local.write(chunk)
            local.flush()
            os.fsync(local.fileno())
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise ImageFault(f"{source.location} cannot be read: {error}", location=source.location) from error
    if source.checksum is not None and digest.hexdigest() != source.checksum:
        raise ImageFault(
            f"{source.location} is not what its checksum says",
            location=source.location,
            expected=source.checksum,
            found=digest.hexdigest(),
        )


def _in_time(deadline: float, source: Source) -> None:
    """A download that nobody waits for any more must not hold its thread for ever."""
    if time.monotonic() > deadline:
        raise ImageFault(f"{source.location} took too long", location=source.location)


def _url(location: str) -> str:
    """The location as a URL. Raises ImageFault on a scheme that is neither a file's nor the web's."""
    scheme = urlsplit(location).scheme
    if scheme in {"http", "https", "file"}:
        return location
    if scheme or not location.startswith("/"):
        raise ImageFault(f"{location} is neither an absolute path nor a file: or http(s): URL", location=location)
    return Path(location).as_uri()


async def _refuse_references(part: Path, disk_format: str, source: Source, limit: float) -> None:
    """An image that points at other files would let its author read the host's."""
    facts = await describe(part, disk_format, limit)
    if any(key in facts for key in ("backing-filename", "full-backing-filename")) or _data_file(facts):
        raise ImageFault(f"{source.location} refers to another file", location=source.location)


def _data_file(facts: dict[str, object]) -> bool:
    specific = facts.get("format-specific")
    data = specific.get("data") if isinstance(specific, dict) else None
    return isinstance(data, dict) and "data-file" in data
