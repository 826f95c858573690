"""The twin of the volumes."""

from collections.abc import Mapping
from typing import Any

from virtfleet_common.records.volume import Attachment, Volume
from virtfleet_common.store.memory.documents import round_trip, stored, updated
from virtfleet_common.store.volumes import SETTLED, Volumes


class MemoryVolumes(Volumes):
    """The twin of the volumes collection."""

    def __init__(self) -> None:
        self._records: dict[str, Volume] = {}

    async def create_indexes(self) -> None:
        """None here."""

    async def add(self, volume: Volume) -> bool:
        await round_trip()
        if volume.id in self._records:
            return False
        self._records[volume.id] = stored(volume)
        return True

    async def get(self, volume_id: str) -> Volume | None:
        await round_trip()
        return self._records.get(volume_id)

    async def find(self, *, project_id: str | None = None, instance_id: str | None = None) -> list[Volume]:
        await round_trip()
        found = [
            one
            for one in self._records.values()
            if project_id in (None, one.project_id) and instance_id in (None, _holder(one))
        ]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    async def claim(self, volume_id: str, attachment: Attachment) -> bool:
        await round_trip()
        found = self._records.get(volume_id)
        if found is None:
            return False
        has = found.attachment
        if has is not None and (has.id, has.rank) != (attachment.id, 0):
            return False
        return self._put(found, {"attachment": attachment.document()})

    async def settle(self, volume_id: str, attachment: Attachment) -> bool:
        await round_trip()
        found = self._records.get(volume_id)
        has = found.attachment if found else None
        if found is None or has is None or has.id != attachment.id or has.rank > attachment.rank:
            return False
        document = attachment.document()
        return self._put(found, {f"attachment.{name}": document[name] for name in SETTLED})

    async def release(self, volume_id: str, attachment_id: str, *, ticket: str | None = None) -> bool:
        await round_trip()
        found = self._records.get(volume_id)
        has = found.attachment if found else None
        if found is None or has is None or has.id != attachment_id or ticket not in (None, has.ticket):
            return False
        return self._put(found, {"attachment": None})

    async def release_all(self, instance_id: str) -> None:
        await round_trip()
        for one in list(self._records.values()):
            if _holder(one) == instance_id:
                self._put(one, {"attachment": None})

    async def delete(self, volume_id: str) -> bool:
        await round_trip()
        found = self._records.get(volume_id)
        if found is None or found.attachment is not None:
            return False
        del self._records[volume_id]
        return True

    def _put(self, found: Volume, fields: Mapping[str, Any]) -> bool:
        self._records[found.id] = updated(found, {"$set": fields, "$currentDate": {"updated_at": True}})
        return True


def _holder(volume: Volume) -> str | None:
    return volume.attachment.instance_id if volume.attachment else None
