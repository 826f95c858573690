"""Puts the examples into README.md: `python docs/draw_readme.py`."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- (examples/\w+\.py) -->\n```python\n).*?(```\n)", re.DOTALL)


def page() -> str:
    """The page with each example as it is in its file."""
    return _BLOCK.sub(lambda block: f"{block[1]}{(ROOT / block[2]).read_text()}{block[3]}", PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
