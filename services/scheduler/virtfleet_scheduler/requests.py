"""From records to a Request: what hints and groups come to is looked up where it is, when it is asked for."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from virtfleet_common.records import Flavor, Image
from virtfleet_common.store import Store

from virtfleet_scheduler.request import Group, Request


async def request_for(
    store: Store,
    *,
    instance_id: str,
    project_id: str,
    flavor: Flavor,
    image: Image | None,
    hints: Mapping[str, Any],
    availability_zone: str | None,
    excluded: Collection[str] = (),
    forced_host: str | None = None,
    lost: Collection[str] = (),
) -> Request:
    """A zone of the form `zone:host` forces the host too (accepting code lets only admins write one)."""
    zone, _, named = (availability_zone or "").partition(":")
    return Request(
        vcpus=flavor.vcpus,
        ram_mb=flavor.ram_mb,
        disk_gb=flavor.disk_gb,
        project_id=project_id,
        flavor_name=flavor.name,
        extra_specs=flavor.extra_specs,
        image_id=image.id if image else None,
        image_properties=image.properties if image else {},
        availability_zone=zone or None,
        group=await _group(store, hints, instance_id, lost),
        same_host=await _hosts_of(store, hints.get("same_host")),
        different_host=await _hosts_of(store, hints.get("different_host")),
        excluded=frozenset(excluded),
        forced_host=forced_host or named.partition(":")[0] or None,
    )


async def _group(store: Store, hints: Mapping[str, Any], instance_id: str, lost: Collection[str]) -> Group | None:
    """The group of the hints, with where its other members are; None also when the group was deleted."""
    id_ = next(iter(_listed(hints.get("group"))), None)
    record = await store.server_groups.get(id_) if id_ else None
    if record is None:
        return None
    places = await store.hosts.find_members(record.id)
    others = {host: len(set(members) - {instance_id}) for host, members in places.items() if host not in lost}
    tied_to = {pin.host for pin in record.pins if pin.instance_id != instance_id} - set(lost)
    return Group(
        record.id,
        record.policy,
        record.max_server_per_host,
        {host: count for host, count in others.items() if count},
        frozenset(tied_to),
    )


async def _hosts_of(store: Store, hint: Any) -> frozenset[str] | None:
    instance_ids = _listed(hint)
    return frozenset(await store.hosts.find_holding(instance_ids)) if instance_ids else None


def _listed(hint: Any) -> Sequence[str]:
    """A hint may be one id, or a list of them."""
    if not hint:
        return []
    return [hint] if isinstance(hint, str) else [str(one) for one in hint]
