"""Where files that can be made again are kept between commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$MERGESEARCH_CACHE`, or `mergesearch` in the user's cache folder. The folder is not created here."""
    chosen = os.environ.get("MERGESEARCH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "mergesearch"
