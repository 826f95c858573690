"""The store in memory, for tests: the twin of `Store`, held to it by one contract suite.

Each part is a subclass of the real one, so that the type checker holds their signatures together; nothing of the
database is inherited. Every call lets others run first, as a round trip would, and then acts in one piece, as one
document's write does. What is stored goes through BSON, so that what the database would refuse or round is refused or
rounded here.
"""

from virtfleet_common.records import AmqpUser, Flavor, Fleet, Image, Reply, ServerGroup, Token
from virtfleet_common.store import Store
from virtfleet_common.store.memory.actions import MemoryActions, MemoryCatalogue
from virtfleet_common.store.memory.feed import MemoryHostFeed, MemoryInstanceFeed, MemoryPins
from virtfleet_common.store.memory.hosts import MemoryHosts
from virtfleet_common.store.memory.instances import MemoryInstances
from virtfleet_common.store.memory.migrations import MemoryCleanups, MemoryMigrations
from virtfleet_common.store.memory.quotas import MemoryAggregates, MemoryQuotas
from virtfleet_common.store.memory.volumes import MemoryVolumes

__all__ = ["MemoryStore"]


class MemoryStore(Store):
    """A store that is empty when made and gone with the process."""

    def __init__(self) -> None:
        groups, aggregates = MemoryCatalogue(ServerGroup), MemoryAggregates()
        pins = MemoryPins(groups.records)
        hosts, instances = MemoryHosts(pins), MemoryInstances()
        super().__init__(
            instances=instances,
            instance_feed=MemoryInstanceFeed(instances.records),
            actions=MemoryActions(),
            hosts=hosts,
            host_feed=MemoryHostFeed(hosts.records, aggregates),
            pins=pins,
            migrations=MemoryMigrations(),
            cleanups=MemoryCleanups(),
            quotas=MemoryQuotas(),
            volumes=MemoryVolumes(),
            aggregates=aggregates,
            server_groups=groups,
            flavors=MemoryCatalogue(Flavor, unique="name"),
            images=MemoryCatalogue(Image),
            fleet=MemoryCatalogue(Fleet),
            tokens=MemoryCatalogue(Token),
            amqp_users=MemoryCatalogue(AmqpUser),
            replies=MemoryCatalogue(Reply),
            client=None,
        )

    async def prepare(self) -> None:
        """Nothing to create."""

    async def ping(self) -> None:
        """It is always there."""

    def close(self) -> None:
        """Nothing to close."""
