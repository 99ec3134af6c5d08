"""Files that can be made again and that nobody has used for long: embeddings of trials, and the cache folder.

Only what mergesearch itself wrote is ever looked at, by the form of its name, and what was used lately stays: the
trial that an artifact belongs to may not have ended yet.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mergesearch.errors import StorageError
from mergesearch.sources.cache import cache_dir
from mergesearch.storage.listing import References, references

DAY = 24 * 3600
_CONTENT_NAME = re.compile(r"[0-9a-f]{64}")
_ARTIFACT = re.compile(r"[0-9a-f]{64}(\.\d+\.part)?")
_STATISTIC = re.compile(r"[0-9a-f]{64}\.safetensors")
_TRAINED = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Leftover:
    """Something that may be removed: files of one use, with the bytes that they hold together."""

    what: str
    paths: tuple[Path, ...]
    n_bytes: int

    def remove(self) -> None:
        """Delete the files; what others deleted meanwhile is no error.

        Raises:
            StorageError: a file cannot be deleted.
        """
        for path in self.paths:
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError(f"{path} cannot be removed: {error.strerror}") from error


def find_leftovers(urls: Iterable[str], locations: Iterable[str], *, days: float) -> list[Leftover]:
    """What nothing needs, in artifact stores and in the cache folder.

    Args:
        urls: databases; what a study in one of them refers to is no leftover.
        locations: folders of artifacts beside the one in the cache.
        days: what was used within them stays.

    Raises:
        StorageError: a database cannot be read, or a location is no folder.
    """
    needed = [references(url) for url in dict.fromkeys(urls)]
    folders = [Path(_folder(location)).expanduser() for location in dict.fromkeys(locations)]
    before = time.time() - days * DAY
    found = []
    for what, paths in _candidates([cache_dir() / "embeddings", *folders]):
        if any(_refers(known, what, paths[0]) for known in needed):
            continue
        with suppress(FileNotFoundError):  # somebody else has just removed it
            statuses = [file.stat() for path in paths for file in _files(path)]
            if all(_last_use(s) < before for s in statuses):
                found.append(Leftover(what, paths, sum(s.st_size for s in statuses)))
    return found


def _candidates(artifacts: Iterable[Path]) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """What mergesearch has written, as (what it is, its files)."""
    cache = cache_dir()
    for folder in artifacts:
        yield from (("embeddings", (path,)) for path in _named(folder, _ARTIFACT))
    yield from (("hash of a file", (path,)) for path in _named(cache / "file-hashes", _CONTENT_NAME))
    for folder in _children(cache / "statistics"):
        yield from (("statistics of a source", (path,)) for path in _named(folder, _STATISTIC))
    for shelf in _children(cache):
        if shelf.name.startswith("tokens-"):
            yield "token ids of a process that was killed", (shelf,)
        for path in _children(shelf):
            described = path.with_name(f"{path.name}.key.json")
            if path.name.startswith(".partial-"):
                yield f"{shelf.name}, begun by a process that was killed", (path,)
            elif _TRAINED.fullmatch(path.name) and described.is_file():
                yield shelf.name, (path, described)


def _refers(known: References, what: str, path: Path) -> bool:
    if what == "embeddings":
        return path.name in known.embeddings
    return any(path.name in text for text in known.study_files)  # however its folder is written there


def _folder(location: str) -> str:
    if "://" in location:
        raise StorageError(f"{location}: buckets are not cleaned from here; give the bucket a lifecycle rule")
    return location


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _named(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return [path for path in _children(folder) if pattern.fullmatch(path.name)]


def _last_use(status: os.stat_result) -> float:
    """When a file was last written or read, as far as its file system notes that; folders are read by looking here."""
    return status.st_mtime if stat.S_ISDIR(status.st_mode) else max(status.st_mtime, status.st_atime)


def _files(path: Path) -> list[Path]:
    """All that a path holds, itself included."""
    return [path, *path.rglob("*")] if path.is_dir() else [path]
