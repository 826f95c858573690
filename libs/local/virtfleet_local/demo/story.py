"""The story: its acts, each played on a fleet of its own, and their chapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from virtfleet_local.demo.chapters import (
    create,
    delete,
    fall_back,
    find_no_room,
    hosts,
    kill_agent,
    migrate_and_return,
    reboot_hard,
    reboot_softly,
    resize,
)
from virtfleet_local.demo.host_loss import VIGILANT, create_twins, lose_host, return_host, switch_off
from virtfleet_local.demo.stage import Chapter


@dataclass(frozen=True, slots=True)
class Act:
    """A fleet of three QEMU hosts and what is played on it. `settings` are for all its services."""

    name: str
    chapters: Sequence[Chapter]
    shared_storage: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)


_GUESTS = (
    Chapter("A fleet", "A broker, a database, an API, a scheduler, a power sync, and three hosts with QEMU.", hosts),
    Chapter("Create", "Two commands over AMQP. `polite` heeds its power button, `stubborn` ignores it.", create),
    Chapter("Soft reboot", "Over HTTP, as OpenStack's clients do it. The guest restarts itself.", reboot_softly),
    Chapter("Hard reboot", "Over AMQP. The guest is destroyed, and made anew from its record.", reboot_hard),
    Chapter("An agent dies", "In the middle of a hard reboot, with the old guest gone and no new one yet.", kill_agent),
    Chapter("A soft reboot by force", "`stubborn` does not listen, so the same action goes on hard.", fall_back),
    Chapter("Resize", "Larger, on another host, disk and all. Its owner is content.", resize),
    Chapter("Migrate, and back", "The same size, another host. Its owner takes it back.", migrate_and_return),
    Chapter("No room", "A size that no host has. The refusal says why, host by host.", find_no_room),
    Chapter("Delete", "Over HTTP. Guests, disks, definitions and claims go; then the record says so.", delete),
)
_HOSTS = (
    Chapter(
        "Shared storage",
        "Another fleet, whose hosts share their disks. Two guests that must stay together.",
        create_twins,
    ),
    Chapter("A host dies", "A power cut. What follows is the fleet's own doing: auto_evacuate is all.", lose_host),
    Chapter("The host returns", "It still knows guests that live elsewhere by now.", return_host),
    Chapter("A guest powers itself off", "Two seconds after it has booted. The record follows it.", switch_off),
)
ACTS = (Act("guests", _GUESTS), Act("hosts", _HOSTS, shared_storage=True, settings=VIGILANT))
