"""Aggregates and hosts that are kept for some: tenants, flavors, images."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from virtfleet_common.settings import SchedulerSettings

from virtfleet_scheduler.aggregates import AggregateRows, allowed
from virtfleet_scheduler.columns import Bools, HostColumns
from virtfleet_scheduler.filters.named import among
from virtfleet_scheduler.request import Request
from virtfleet_scheduler.rules import Plain

_TENANTS = "filter_tenant_id"
_FLAVORS = "instance_type"


def _metadata(hosts: HostColumns, row: int, key: str) -> dict[str, str]:
    return {one.name: one.metadata[key] for one in hosts.aggregates if key in one.metadata and row in one.rows}


class Tenants(Plain):
    """Aggregates with keys `filter_tenant_id*` take the projects they list, and no others."""

    code = "aggregate_of_other_tenants"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """In no such aggregate, or in one that lists the project."""
        closed = [one for one in hosts.aggregates if any(key.startswith(_TENANTS) for key in one.metadata)]
        if not closed:
            return None
        passing = np.ones(len(hosts), dtype=np.bool_)
        for one in closed:
            passing[one.rows] = False
        for one in closed:
            if request.project_id in self._projects(one):
                passing[one.rows] = True
        return passing

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """The aggregates that keep the host for others."""
        closed = [one.name for one in hosts.aggregates if row in one.rows and self._projects(one)]
        return {"aggregates": closed, "project": request.project_id}

    @staticmethod
    def _projects(one: AggregateRows) -> set[str]:
        return {project for key in one.metadata if key.startswith(_TENANTS) for project in one.values(key)}


class AggregateFlavors(Plain):
    """Aggregates with the key `instance_type` take the flavors they name, and no others."""

    code = "aggregate_of_other_flavors"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """In no such aggregate, or in one that names the flavor."""
        if not any(_FLAVORS in one.metadata for one in hosts.aggregates):
            return None
        has, matches = allowed(
            len(hosts), hosts.aggregates, _FLAVORS, lambda one: request.flavor_name in one.values(_FLAVORS)
        )
        return ~has | matches

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """What the host's aggregates take."""
        return {"flavor": request.flavor_name, "aggregates": _metadata(hosts, row, _FLAVORS)}


class AggregateImages(Plain):
    """An aggregate whose metadata has a key that is also a property of the image takes images with its values only."""

    code = "aggregate_of_other_images"

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """No property of the image contradicts the host's aggregates."""
        passing: Bools | None = None
        for key, value in request.image_properties.items():
            if not any(key in one.metadata for one in hosts.aggregates):
                continue
            has, matches = allowed(len(hosts), hosts.aggregates, key, _lists(key, value))
            passing = (~has | matches) if passing is None else passing & (~has | matches)
        return passing

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """The properties that the host's aggregates speak of."""
        told = {key: _metadata(hosts, row, key) for key in request.image_properties}
        return {"aggregates": {key: values for key, values in told.items() if values}}


class IsolatedHosts:
    """Isolated images run on isolated hosts; other images do not, if the hosts are restricted to isolated images."""

    code = "host_is_isolated"

    def __init__(self, settings: SchedulerSettings) -> None:
        self._images = frozenset(settings.isolated_images)
        self._hosts: Iterable[str] = tuple(settings.isolated_hosts)
        self._is_restricted = settings.restrict_isolated_hosts_to_isolated_images

    def passes(self, hosts: HostColumns, request: Request) -> Bools | None:
        """The image and the host are both isolated, or both not."""
        if not self._hosts and not self._images:
            return None
        if request.image_id in self._images:
            return among(hosts, self._hosts)
        return ~among(hosts, self._hosts) if self._is_restricted else None

    def facts(self, hosts: HostColumns, request: Request, row: int) -> Mapping[str, Any]:
        """Whether the image is isolated."""
        return {"image": request.image_id, "is_image_isolated": request.image_id in self._images}


def _lists(key: str, value: str) -> Any:
    return lambda one: value in one.values(key)
