"""Reading a guest's console: what `guest/init` and `guest/power-button` write there. Pure."""

import re

_BOOT = "virtfleet-guest: boot "
_READY = "virtfleet-guest: ready"
_BUTTON = re.compile(r"^virtfleet-guest: power button$", re.MULTILINE)
_IGNORED = "virtfleet-guest: power button ignored"
_OFF = "virtfleet-guest: power off"
_MARK = re.compile(r"^virtfleet-guest: marker (\S+)$", re.MULTILINE)


def boots(console: str) -> list[str]:
    """The id of every boot, oldest first."""
    return re.findall(rf"^{_BOOT}(\S+)$", console, re.MULTILINE)


def is_ready_after(console: str, count: int) -> bool:
    """Whether the guest has booted `count` times or more, and its latest boot has come to its end."""
    return len(boots(console)) >= count and _READY in console.rpartition(_BOOT)[2]


def presses(console: str) -> int:
    """How often the power button was pressed while the guest listened."""
    return len(_BUTTON.findall(console))


def ignores(console: str) -> int:
    """How often the guest ignored it."""
    return console.count(_IGNORED)


def has_switched_off(console: str) -> bool:
    """Whether the guest has ever switched itself off."""
    return _OFF in console


def latest_mark(console: str) -> str:
    """The mark that the latest boot found on its disk (`none` at the first)."""
    return next(iter(_MARK.findall(console.rpartition(_BOOT)[2])), "")
