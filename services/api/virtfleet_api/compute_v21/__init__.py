"""The Compute API v2.1: one module per resource, each ending in its table of endpoints."""

from virtfleet_api.compute_v21 import (
    absent,
    aggregates,
    flavors,
    hypervisors,
    instance_actions,
    migrations,
    quotas,
    server_actions,
    server_groups,
    server_labels,
    servers,
    services,
    versions,
    volume_attachments,
    zones,
)
from virtfleet_api.routing import OPEN, Dialect, Endpoint

# The first that matches is taken, and actions are what is asked for most.
DIALECT = Dialect(
    "compute",
    ("/v2.1",),
    (
        *server_actions.ENDPOINTS,
        *servers.ENDPOINTS,
        *server_labels.ENDPOINTS,
        *instance_actions.ENDPOINTS,
        *migrations.ENDPOINTS,
        *volume_attachments.ENDPOINTS,
        *flavors.ENDPOINTS,
        *services.ENDPOINTS,
        *hypervisors.ENDPOINTS,
        *aggregates.ENDPOINTS,
        *zones.ENDPOINTS,
        *server_groups.ENDPOINTS,
        *quotas.ENDPOINTS,
        *absent.ENDPOINTS,
        Endpoint("GET", "", versions.show_v21, OPEN),
    ),
)
ROOT = Dialect(
    "versions",
    ("",),
    (
        Endpoint("GET", "", versions.list_versions, OPEN),
        Endpoint("GET", "/v2", versions.show_v20, OPEN),
    ),
)
