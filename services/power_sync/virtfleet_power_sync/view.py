"""The record in memory, by host, as far as reports are compared with it: read whole once, then changed as commits are
told."""

import asyncio
from collections import Counter
from collections.abc import Mapping

import structlog
from virtfleet_common.errors import Faulty
from virtfleet_common.store import Store
from virtfleet_common.store.instance_feed import InstanceNews, Recorded

log = structlog.get_logger()
_PAUSE = 1.0


class RecordView:
    """What this process knows of the record. It may be behind: what is written is decided on the record itself."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hosts: dict[str, dict[str, Recorded]] = {}
        self._known: dict[str, Recorded] = {}
        self._versions: Counter[str] = Counter()
        self.is_loaded = False

    def on_host(self, host: str) -> Mapping[str, Recorded]:
        """The instances that the record places on a host, by id."""
        return self._hosts.get(host, {})

    def version(self, host: str) -> int:
        """A number that grows with every change of `on_host`."""
        return self._versions[host]

    async def follow(self) -> None:
        """Take what the database tells, for ever; begin anew where the stream breaks."""
        while True:
            try:
                async for news in self._store.instance_feed.follow():
                    self.take(news)
            except Faulty as error:
                log.warning("view.stream_broken", error=error.message)
            await asyncio.sleep(_PAUSE)

    def take(self, news: InstanceNews) -> None:
        """Know what is told."""
        if news.is_whole:
            for id_ in self._known.keys() - news.changed.keys():
                self._put(id_, None)
            self.is_loaded = True
        for id_, recorded in news.changed.items():
            self._put(id_, recorded)

    def _put(self, id_: str, now: Recorded | None) -> None:
        before = self._known.pop(id_, None)
        if before is not None and before != now:
            del self._hosts[before.host][id_]
            self._versions[before.host] += 1
        if now is not None:
            self._known[id_] = now
        if now is not None and before != now:
            self._hosts.setdefault(now.host, {})[id_] = now
            self._versions[now.host] += 1
