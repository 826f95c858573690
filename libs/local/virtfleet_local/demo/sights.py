"""What the demo must observe: it passes only when every one of these was seen."""

from enum import StrEnum


class Sight(StrEnum):
    """One observation, as the sentence that is shown when it is made."""

    HOSTS_UP = "three hosts are up"
    CREATED = "both guests are active"
    READY = "each guest says on its own console that it is ready"

    BUTTON = "the guest's console shows the power button being pressed, and the guest switching itself off"
    FRESH_BOOT = "the guest's console shows a fresh boot: another boot id"
    DISK_KEPT = "the guest finds the mark that its first boot left on its disk"

    NEW_DOMAIN = "the hypervisor runs another domain than before, in another process"
    NEW_XML = "the domain's definition was made anew: its metadata names this very action"
    NO_BUTTON = "the guest was not asked: it boots again without a power button on its console"

    AGENT_DIED = "the agent was killed with SIGKILL in the middle of the hard reboot"
    GUEST_IS_OFF = "the guest is off, and the record says that the reboot is under way"
    FINISHED = "the agent, started again, finished the same action"
    ONE_GUEST = "the guest runs once, defined by that action, and says that it is ready"

    IGNORED = "the guest's console shows the power button being ignored"
    FELL_BACK = "the action's history says soft_reboot_fell_back, and why"
    FORCED = "the guest was restarted by force: another domain, and ready again"

    MOVED = "the guest was resized: larger, and on another host"
    DATA_MOVED = "its disk came along: it finds the mark that its first boot left"
    CONFIRMED = "the resize was confirmed, and the record says so at once"
    SOURCE_CLEAN = "nothing of the guest is left on the host it came from"
    MIGRATED = "the guest was migrated to another host"
    TAKEN_BACK = "the migration was reverted: the guest runs where it was, and nowhere else"
    EXPLAINED = "no host has room for a huge guest, and the refusal names filter, hosts and numbers"
    UNHARMED = "the guest that found no room goes on as it was"

    DELETED = "the API knows neither guest any more"
    NO_PROCESS = "no guest process is left on any host"
    NO_FILE = "no disk, console log or domain definition of theirs is left"
    RELEASED = "their claims on the hosts are released"
    ENDED_ONCE = "every action that was begun has ended, and ended once"

    TOGETHER = "two guests of an affinity group run on one host, and say that they are ready"
    POWER_CUT = "the host is off, and so are its guests"
    LOST = "the fleet missed its heartbeats: it was unknown, and is down"
    FENCED = "it was fenced, and only then guests were started elsewhere"
    EVACUATED = "both guests were evacuated, and run on another host, once each and together"
    DATA_SAVED = "each console shows exactly one boot more, which found the first boot's mark on the disk"
    MIGRATIONS_DONE = "their migrations are done"
    RETURNED = "the host is up again"
    STALE_GONE = "what it still had of the guests is gone, and it started none of them"
    COMPLETED = "their migrations are completed, and the guests were not disturbed"
    OFF_BY_ITSELF = "the guest's console shows it powering itself off, and no power button"
    NOTICED = "within a second the event was out, and the record said that it is stopped"


class NotSeenError(Exception):
    """What should have been observed was not, in all the time it was given. The message says what was seen instead."""
