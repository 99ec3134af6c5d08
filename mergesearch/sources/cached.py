"""Results that took long to make, kept by the content of what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergesearch.sources.cache import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_ABANDONED_S = 24 * 3600  # a partial result older than this was left by a process that was killed


def cached(kind: str, key: Mapping[str, Any], build: Callable[[Path], object]) -> Path:
    """The folder that `build` fills, built once per kind and key.

    Args:
        kind: what it is, a plain word such as `contrastive`; the name of a folder in the cache.
        key: everything the result depends on (content hashes, options, seed, versions), as plain JSON types.
            It is stored beside the result as `NAME.key.json`, for people who look into the cache.
        build: called with the path of a folder that does not exist yet and that it must create.

    Returns:
        The finished folder; treat it as read-only.

    The result gets its name by one rename after `build` has returned and the files are on disk, so a build
    that fails or is killed leaves nothing that could be taken for whole. Processes that build the same key
    at the same time do the work twice, and the first to finish wins.

    Raises:
        TypeError: for a key that is not plain JSON.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", kind):
        raise ValueError(f"kind {kind!r} must be a plain word of lower-case letters, digits, - and _")
    described = json.dumps(key, sort_keys=True, allow_nan=False)
    shelf = cache_dir() / kind
    name = hashlib.sha256(described.encode()).hexdigest()[:32]
    finished = shelf / name
    if finished.is_dir():
        return finished

    shelf.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(shelf)
    workplace = Path(tempfile.mkdtemp(prefix=".partial-", dir=shelf))
    try:
        build(workplace / "result")
        _write_through(workplace / "result")
        (shelf / f"{name}.key.json").write_text(json.dumps(key, sort_keys=True, indent=2) + "\n", encoding="utf-8")
        try:
            (workplace / "result").rename(finished)
        except OSError:
            if not finished.is_dir():  # otherwise another process was first, with an equal result
                raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return finished


def _write_through(folder: Path) -> None:
    """Force the files to disk: a rename may otherwise outlive a power cut that its files did not."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _remove_abandoned(shelf: Path) -> None:
    for workplace in shelf.glob(".partial-*"):
        try:
            age = time.time() - workplace.stat().st_mtime
        except FileNotFoundError:
            continue  # its owner has just finished
        if age > _ABANDONED_S:
            shutil.rmtree(workplace, ignore_errors=True)
