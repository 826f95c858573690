"""What the spectator sees: chapters, commands, events as they arrive, and a check mark for everything observed."""

import time

from rich.console import Console
from rich.markup import escape
from virtfleet_common.client import FleetEvent
from virtfleet_common.states import PowerState

from virtfleet_local.demo.sights import Sight

_COLOURS = {"end": "green", "up": "green", "error": "red", "down": "red"}


class Screen:
    """The story as it is told. `seen` holds what was observed so far."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seen: set[Sight] = set()
        self._began = time.monotonic()
        self._chapters = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the curtain rose."""
        return time.monotonic() - self._began

    def chapter(self, title: str, what: str) -> None:
        """A new chapter, and what to look for in it."""
        self._chapters += 1
        self.console.print(f"\n[bold cyan]{self._chapters}. {title}[/]\n[dim]{what}[/]", soft_wrap=True)

    def says(self, text: str) -> None:
        """What the demo does now."""
        self._line("[cyan]▸[/]", escape(text))

    def event(self, event: FleetEvent) -> None:
        """An event that has just come from the broker."""
        key, facts = _of_host(event) if event.key.startswith("host.") else _of_instance(event)
        colour = next((colour for word, colour in _COLOURS.items() if word in key.split(".")), "yellow")
        self._line("[magenta]◂[/]", f"[{colour}]{key:<28}[/] {escape(facts)}")

    def saw(self, sight: Sight, details: str = "") -> None:
        """Something was observed."""
        self.seen.add(sight)
        more = f" [dim]({escape(details)})[/]" if details else ""
        self._line("[bold green]✔[/]", f"{sight}{more}")

    def misses(self) -> list[Sight]:
        """What was not observed, in the order of the story."""
        return [sight for sight in Sight if sight not in self.seen]

    def closes(self, why: str | None) -> None:
        """The end: what was observed, or what was not and why the story stopped."""
        misses = self.misses()
        if why is not None:
            self.console.print(f"\n[bold red]The story stopped:[/] {escape(why)}")
        for sight in misses:
            self._line("[bold red]✘[/]", f"not observed: {sight}")
        colour = "red" if misses else "green"
        self.console.print(f"\n[bold {colour}]{len(self.seen)} of {len(Sight)} observed, in {self.elapsed:.0f} s.[/]")

    def _line(self, sign: str, text: str) -> None:
        self.console.print(f"[dim]{self.elapsed:6.1f} s[/] {sign} {text}", highlight=False, soft_wrap=True)


def _of_host(event: FleetEvent) -> tuple[str, str]:
    data = event.data
    return event.key, f"was {data['before'] or 'new'}" if "before" in data else str(data.get("detail", ""))


def _of_instance(event: FleetEvent) -> tuple[str, str]:
    where = f"on {event.data['host']}" if event.data.get("host") else ""
    return event.key.rpartition(".")[0], f"{event.data['name']:<9} {_states(event):<38} {where}"


def _states(event: FleetEvent) -> str:
    after = event.data["after"]
    return f"{after['vm_state']}, {after['task_state'] or 'idle'}, {PowerState(after['power_state']).name.lower()}"
