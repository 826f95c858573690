"""What is costly to make and the same for every fleet of this checkout is kept in one place."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`VIRTFLEET_CACHE`, or `.cache` of the checkout."""
    return Path(os.environ.get("VIRTFLEET_CACHE") or Path(__file__).parents[3] / ".cache").absolute()
