"""The pages say what the code says: what is drawn from the code is up to date, and what is referred to exists."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def script(name: str) -> ModuleType:
    """One of the scripts that draw pages, which are no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["draw_tables", "draw_settings", "draw_readme"])
def test_a_drawn_page_is_what_its_script_draws_now(name: str) -> None:
    drawn = script(name)
    assert drawn.PAGE.read_text() == drawn.page(), f"run: python docs/{name}.py"


def test_the_tables_know_every_step_that_is_handed_over_to() -> None:
    services = "\n".join(path.read_text() for path in (ROOT / "services").rglob("*.py"))
    assert set(re.findall(r'(?:HandOver|_to_destination)\(\s*(?:run, )?"(\w+)"', services)) == set(
        script("draw_tables").FOLLOWERS.values()
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`((?:libs|services|docs|deploy|examples|virtfleet_common)/[\w./-]+)`", page.read_text())
    places = (ROOT, ROOT / "libs" / "common")
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    known = set(re.findall(r"`(VIRTFLEET_\w+)`", script("draw_settings").page()))
    named = set(re.findall(r"\b(VIRTFLEET_[A-Z_]+)\b", page.read_text()))
    assert named - known == set()
