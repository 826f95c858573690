"""The twins of the feeds, and of the pins of affinity groups."""

import asyncio
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence

from virtfleet_common.records import Host, Instance, Pin, ServerGroup
from virtfleet_common.states import VmState
from virtfleet_common.store.aggregates import Aggregates
from virtfleet_common.store.host_feed import HostChange, HostFeed, HostNews, as_change
from virtfleet_common.store.instance_feed import InstanceFeed, InstanceNews, Recorded
from virtfleet_common.store.pins import Pins, may_pin

_LOOK_AGAIN = 0.002


class MemoryPins(Pins):
    """The twin of the pins, in the twin of the groups."""

    def __init__(self, groups: MutableMapping[str, ServerGroup]) -> None:
        self._records = groups

    async def create_indexes(self) -> None:
        """None here."""

    async def pin(self, group_id: str, pin: Pin, ignoring: Sequence[str] = ()) -> bool:
        await asyncio.sleep(0)
        group = self._records.get(group_id)
        if group is None:
            return False
        if any((one.claim, one.host, one.by) == (pin.claim, pin.host, pin.by) for one in group.pins):
            return True
        if not may_pin(group, pin, ignoring):
            return False
        self._records[group_id] = group.model_copy(update={"pins": [*group.pins, pin]})
        return True

    async def unpin(self, group_id: str, claim: str, host: str, by: str | None = None) -> bool:
        await asyncio.sleep(0)
        group = self._records.get(group_id)
        if group is None:
            return False
        kept = [one for one in group.pins if (one.claim, one.host) != (claim, host) or by not in (None, one.by)]
        self._records[group_id] = group.model_copy(update={"pins": kept})
        return len(kept) < len(group.pins)

    async def find(self) -> list[ServerGroup]:
        await asyncio.sleep(0)
        return [group for group in self._records.values() if group.pins]


class MemoryHostFeed(HostFeed):
    """The twin of the feed: it looks every few milliseconds which records are others than before."""

    def __init__(self, hosts: Mapping[str, Host], aggregates: Aggregates) -> None:
        self._records = hosts
        self._aggregates = aggregates

    async def create_indexes(self) -> None:
        """None here."""

    async def read(self, hosts: Sequence[str] | None = None) -> list[HostChange]:
        await asyncio.sleep(0)
        return [as_change(one.document()) for id_, one in self._records.items() if hosts is None or id_ in hosts]

    async def follow(self) -> AsyncIterator[HostNews]:
        seen, aggregates = dict(self._records), await self._aggregates.find()
        yield HostNews(await self.read(), is_whole=True, aggregates=True)
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            now, now_aggregates = dict(self._records), await self._aggregates.find()
            changed = [as_change(one.document()) for id_, one in now.items() if seen.get(id_) is not one]
            gone = [HostChange(id_, None) for id_ in seen.keys() - now.keys()]
            if changed or gone or now_aggregates != aggregates:
                yield HostNews([*changed, *gone], aggregates=now_aggregates != aggregates)
            seen, aggregates = now, now_aggregates


class MemoryInstanceFeed(InstanceFeed):
    """The twin of the feed of instances; it tells every change, the needless ones too."""

    def __init__(self, instances: Mapping[str, Instance]) -> None:
        self._records = instances

    async def create_indexes(self) -> None:
        """None here."""

    async def read(self, ids: Sequence[str] | None = None) -> dict[str, Recorded]:
        await asyncio.sleep(0)
        return {
            id_: Recorded.of(one)
            for id_, one in self._records.items()
            if (ids is None or id_ in ids) and one.host and one.vm_state is not VmState.DELETED
        }

    async def follow(self) -> AsyncIterator[InstanceNews]:
        seen = dict(self._records)
        yield InstanceNews(await self.read(), is_whole=True)
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            now = dict(self._records)
            ids = [id_ for id_ in seen.keys() | now.keys() if seen.get(id_) is not now.get(id_)]
            if ids:
                yield InstanceNews({**dict.fromkeys(ids), **await self.read(ids)})
            seen = now
