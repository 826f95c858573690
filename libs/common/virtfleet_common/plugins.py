"""Plug-ins: what the settings name and an installed distribution offers as an entry point."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from virtfleet_common.errors import Faulty
from virtfleet_common.settings import CommonSettings


class NoSuchPlugin(Faulty):
    """The settings name something that no installed distribution offers."""

    code = "no_such_plugin"


def make(group: str, name: str, settings: CommonSettings) -> Any:
    """The plug-in `name` of an entry point group (`virtfleet.<kind>s`), made with the settings as its only argument.
    Raises NoSuchPlugin."""
    offered = _offered(group)
    if name not in offered:
        known = ", ".join(sorted(offered)) or "none"
        raise NoSuchPlugin(f"there is no {group.removeprefix('virtfleet.')[:-1]} called {name!r}; installed: {known}")
    return offered[name].load()(settings)


@cache
def _offered(group: str) -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=group)}
