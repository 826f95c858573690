"""State, in MongoDB through motor, which is imported in this package alone."""

from dataclasses import dataclass, fields
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import WriteConcern
from pymongo.errors import PyMongoError

from virtfleet_common.errors import StoreUnavailable
from virtfleet_common.records import AmqpUser, Flavor, Fleet, Image, Reply, ServerGroup, Token
from virtfleet_common.settings import CommonSettings
from virtfleet_common.store.actions import Actions
from virtfleet_common.store.aggregates import Aggregates
from virtfleet_common.store.catalogue import Catalogue
from virtfleet_common.store.counting import WriteCounter
from virtfleet_common.store.expect import Expect, Mismatch
from virtfleet_common.store.host_feed import HostFeed
from virtfleet_common.store.hosts import Hosts
from virtfleet_common.store.instance_feed import InstanceFeed
from virtfleet_common.store.instances import Delivered, InstanceQuery, Instances
from virtfleet_common.store.migrations import Cleanups, MigrationQuery, Migrations
from virtfleet_common.store.pins import Pins
from virtfleet_common.store.quotas import Quotas
from virtfleet_common.store.volumes import Volumes

__all__ = ["Delivered", "Expect", "InstanceQuery", "MigrationQuery", "Mismatch", "Store"]

_REPLIES_KEPT = 86400.0


@dataclass(frozen=True, slots=True)
class Store:
    """Every collection. All writes are majority writes, retried by the driver across an election."""

    instances: Instances
    instance_feed: InstanceFeed
    actions: Actions
    hosts: Hosts
    host_feed: HostFeed
    pins: Pins
    migrations: Migrations
    cleanups: Cleanups
    quotas: Quotas
    volumes: Volumes
    aggregates: Aggregates
    server_groups: Catalogue[ServerGroup]
    flavors: Catalogue[Flavor]
    images: Catalogue[Image]
    fleet: Catalogue[Fleet]
    tokens: Catalogue[Token]
    amqp_users: Catalogue[AmqpUser]
    replies: Catalogue[Reply]
    client: Any

    @classmethod
    def connect(cls, settings: CommonSettings) -> "Store":
        """A store on the database that the settings name. No call is made yet."""
        client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
            settings.mongodb_url,
            tz_aware=True,
            retryWrites=True,
            timeoutMS=int(settings.store_timeout * 1000),
            appname="virtfleet",
            event_listeners=[WriteCounter()],
        )
        database = client.get_database(settings.database, write_concern=WriteConcern("majority"))
        pins = Pins(database)
        return cls(
            instances=Instances(database, deleted_retention=settings.deleted_retention),
            instance_feed=InstanceFeed(database),
            actions=Actions(database),
            hosts=Hosts(database, pins),
            host_feed=HostFeed(database),
            pins=pins,
            migrations=Migrations(database),
            cleanups=Cleanups(database),
            quotas=Quotas(database, deleted_retention=settings.deleted_retention),
            volumes=Volumes(database),
            aggregates=Aggregates(database),
            server_groups=Catalogue(database, "server_groups", ServerGroup),
            flavors=Catalogue(database, "flavors", Flavor, unique="name"),
            images=Catalogue(database, "images", Image),
            fleet=Catalogue(database, "fleet", Fleet),
            tokens=Catalogue(database, "tokens", Token),
            amqp_users=Catalogue(database, "amqp_users", AmqpUser),
            replies=Catalogue(database, "replies", Reply, expire_after=_REPLIES_KEPT),
            client=client,
        )

    async def prepare(self) -> None:
        """Create what indexes are missing. Raises StoreUnavailable."""
        parts = (getattr(self, part.name) for part in fields(self) if part.name != "client")
        try:
            for part in parts:
                await part.create_indexes()
        except PyMongoError as error:
            raise StoreUnavailable(f"the database did not answer: {error}") from error

    async def ping(self) -> None:
        """Raises StoreUnavailable if the database cannot be reached."""
        try:
            await self.client.admin.command("ping")
        except PyMongoError as error:
            raise StoreUnavailable(f"the database did not answer: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
