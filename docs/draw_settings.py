"""Draws docs/settings.md from the settings classes: `python docs/draw_settings.py`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from virtfleet_common.settings import (
    AgentSettings,
    ApiSettings,
    CommonSettings,
    PowerSyncSettings,
    SchedulerSettings,
)

PAGE = Path(__file__).with_name("settings.md")
_CLASSES: dict[str, type[CommonSettings]] = {
    "Every service": CommonSettings,
    "api": ApiSettings,
    "scheduler": SchedulerSettings,
    "compute_agent": AgentSettings,
    "power_sync": PowerSyncSettings,
}


def page() -> str:
    """The whole page."""
    return "\n".join([*_head(), *(line for title, kind in _CLASSES.items() for line in _section(title, kind))])


def _head() -> Iterator[str]:
    yield "# Settings"
    yield ""
    yield "Drawn from `virtfleet_common.settings` by `python docs/draw_settings.py`."
    yield ""
    yield "Every setting is an environment variable. Durations are in seconds. A value that cannot be read stops the"
    yield "service at its start, with a message that names the setting."
    yield ""


def _section(title: str, kind: type[CommonSettings]) -> Iterator[str]:
    yield f"## {title}"
    yield ""
    yield (kind.__doc__ or "").strip()
    yield ""
    yield "| variable | default | meaning |"
    yield "| --- | --- | --- |"
    for name, field in kind.model_fields.items():
        if kind is CommonSettings or name not in CommonSettings.model_fields:
            yield f"| `VIRTFLEET_{name.upper()}` | {_default(field)} | {_meaning(field)} |"
    yield ""


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    shown = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return f"`{shown}`" if shown else "(empty)"


def _meaning(field: FieldInfo) -> str:
    choices = ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    return "; ".join(part for part in (field.description, f"one of {choices}" if choices else "") if part)


if __name__ == "__main__":
    PAGE.write_text(page())
