"""The twin of the hosts collection."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from virtfleet_common.records import (
    Allocation,
    Host,
    HostFailure,
    Resources,
)
from virtfleet_common.states import HostState
from virtfleet_common.store.hosts import (
    FAILURES_KEPT,
    KINDS,
    Hosts,
    as_given_back,
    as_taken,
    has_fewer,
    has_room,
    held_by,
)
from virtfleet_common.store.memory.documents import has_fields, round_trip, stored, updated
from virtfleet_common.store.pins import Pins


class MemoryHosts(Hosts):
    """The twin of the hosts collection."""

    def __init__(self, pins: Pins) -> None:
        self._records: dict[str, Host] = {}
        self._pins = pins

    @property
    def records(self) -> dict[str, Host]:
        """What is stored."""
        return self._records

    async def create_indexes(self) -> None:
        """None here."""

    async def register(self, host_id: str, *, uuid: str, limits: Resources, facts: Mapping[str, Any]) -> Host:
        await round_trip()
        now = datetime.now(UTC)
        stored = self._records.get(host_id) or Host(id=host_id, uuid=uuid, created_at=now)
        free = {kind: getattr(limits, kind) - sum(getattr(one, kind) for one in stored.allocations) for kind in KINDS}
        sequence = stored.sequence if stored.boot_id == facts.get("boot_id") else 0
        known = {
            "uuid": uuid, "limits": limits.model_dump(), "free": free, "last_seen": now, "sequence": sequence,
            "placed": len(stored.allocations), "fence": None, "lost_at": None,
            "state": HostState.DOWN if stored.is_forced_down else HostState.UP,
        }  # fmt: skip
        self._records[host_id] = updated(stored, {"$set": {**known, **facts}})
        return self._records[host_id]

    async def get(self, host_id: str) -> Host | None:
        await round_trip()
        return self._records.get(host_id)

    async def get_brief(self, host_id: str) -> Host | None:
        found = await self.get(host_id)
        return found.model_copy(update={"allocations": (), "failures": ()}) if found else None

    async def get_state(self, host_id: str) -> HostState | None:
        await round_trip()
        host = self._records.get(host_id)
        return host.state if host else None

    async def get_last_heard(self) -> datetime | None:
        await round_trip()
        return max((host.last_seen for host in self._records.values() if host.last_seen), default=None)

    async def find(self) -> list[Host]:
        await round_trip()
        return [host.model_copy(update={"allocations": ()}) for _, host in sorted(self._records.items())]

    async def put_seen(self, seen: Mapping[str, Mapping[str, Any]]) -> None:
        await round_trip()
        for host_id, fields in seen.items():
            host = self._records.get(host_id)
            if host and host.boot_id == fields["boot_id"] and host.sequence < fields["sequence"]:
                self._records[host_id] = updated(host, {"$set": fields, "$currentDate": {"last_seen": True}})

    async def set_fields(
        self, host_id: str, fields: Mapping[str, Any], *, was: Mapping[str, Any] | None = None
    ) -> bool:
        await round_trip()
        host = self._records.get(host_id)
        if host is None or not has_fields(host.document(), was or {}):
            return False
        self._records[host_id] = updated(host, {"$set": fields})
        return True

    async def remove(self, host_id: str, *, was: Mapping[str, Any]) -> bool:
        await round_trip()
        host = self._records.get(host_id)
        if host is None or not has_fields(host.document(), was):
            return False
        del self._records[host_id]
        return True

    async def find_page(self, after: str = "", limit: int = 500) -> list[Host]:
        await round_trip()
        return [host for host_id, host in sorted(self._records.items()) if host_id > after][:limit]

    async def find_members(self, group_id: str) -> dict[str, list[str]]:
        await round_trip()
        found = {
            host_id: sorted({one.instance_id for one in host.allocations if one.group == group_id})
            for host_id, host in self._records.items()
        }
        return {host_id: members for host_id, members in found.items() if members}

    async def find_holding(self, instance_ids: Sequence[str]) -> list[str]:
        await round_trip()
        wanted = set(instance_ids)
        return [id_ for id_, host in self._records.items() if wanted & {one.instance_id for one in host.allocations}]

    async def note_failure(self, host_id: str, attempt: str) -> None:
        await round_trip()
        host = self._records.get(host_id)
        if host and all(one.id != attempt for one in host.failures):
            failures = [*host.failures, HostFailure(id=attempt, at=datetime.now(UTC))]
            self._records[host_id] = stored(host.model_copy(update={"failures": failures[-FAILURES_KEPT:]}))

    async def claim(self, host_id: str, wanted: Allocation, *, most_in_group: int | None = None) -> bool:
        await round_trip()
        host = self._records.get(host_id)
        if host is None:
            return False
        if any(one.claim == wanted.claim for one in host.allocations):
            return True
        if not has_room(host, wanted) or (most_in_group and not has_fewer(host, wanted, most_in_group)):
            return False
        self._records[host_id] = updated(host, as_taken(wanted))
        return True

    async def find_claim(self, claim: str) -> str | None:
        await round_trip()
        holding = (id_ for id_, host in self._records.items() if any(one.claim == claim for one in host.allocations))
        return next(holding, None)

    async def release(self, instance_id: str, claim: str | None = None, host_id: str | None = None) -> int:
        await round_trip()
        released = [
            (name, held)
            for name, host in self._records.items()
            for held in held_by(host.allocations, instance_id, claim)
            if host_id in (None, name)
        ]
        for name, held in released:
            self._records[name] = updated(self._records[name], as_given_back(held))
        for name, held in released:
            if held.group:
                await self._pins.unpin(held.group, held.claim, name)
        return len(released)
