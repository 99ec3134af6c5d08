"""Artifacts of a study: files too large for a database, in a folder or a bucket, by Optuna's artifact stores.

An artifact is called by the SHA-256 of its content. So it cannot be half-written and pass for whole, equal ones
are kept once, and one that is missing or damaged is simply not there: everything kept here can be made again.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mergesearch.errors import StorageError

MOST_BYTES = 8 << 30
"""What a folder may hold; beyond it the artifacts that were used least recently go. Buckets have rules of their own."""


def check_location(location: str) -> None:
    """Whether artifacts can be kept there, as far as can be told without writing.

    Raises:
        StorageError: no folder and no bucket, a library is missing, or the folder cannot be made or written.
    """
    if "://" in location:
        Artifacts(location)
        return
    folder = Path(location).expanduser()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise StorageError(f"artifacts cannot be kept in {location}: {there} is no folder that may be written")


class Artifacts:
    """Content-addressed bytes at `location`.

    Args:
        location: a folder, `s3://BUCKET` or `gs://BUCKET`.
        most_bytes: what a folder may hold.

    Raises:
        StorageError: the location cannot be used, or the library for it is not installed.
    """

    def __init__(self, location: str | Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._folder: Path | None = None
        self._most_bytes = most_bytes
        self._store = self._open(str(location))

    @property
    def optuna_store(self) -> Any:
        """Optuna's store of the same files, for programs that know those."""
        return self._store

    def write(self, content: bytes) -> str:
        """Keep `content`; returns its name.

        Raises:
            StorageError: it cannot be written.
        """
        name = hashlib.sha256(content).hexdigest()
        if self._folder is None:
            try:
                self._store.write(name, io.BytesIO(content))
            except Exception as error:  # every cloud library has exceptions of its own
                raise StorageError(f"an artifact cannot be written: {type(error).__name__}: {error}") from error
            return name
        # Under another name first: a reader, or a disk that is full, never meets half an artifact. And always: the one
        # that is there may be damaged.
        part = self._folder / f"{name}.{os.getpid()}.part"
        try:
            try:
                self._store.write(part.name, io.BytesIO(content))
                part.replace(self._folder / name)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"an artifact cannot be written to {self._folder}: {error.strerror}") from error
        with suppress(OSError):  # what is written stays written
            self._evict(keep=name)
        return name

    def read(self, name: str) -> bytes | None:
        """The content of that name; None where it is missing or damaged.

        Raises:
            StorageError: it is there, or may be, and cannot be read.
        """
        from optuna.artifacts.exceptions import ArtifactNotFound

        try:
            with self._store.open_reader(name) as file:
                content: bytes = file.read()
        except ArtifactNotFound:
            return None
        except Exception as error:  # every cloud library has exceptions of its own
            raise StorageError(f"artifact {name} cannot be read: {type(error).__name__}: {error}") from error
        if hashlib.sha256(content).hexdigest() != name:
            return None
        if self._folder is not None:
            with suppress(OSError):  # evicted meanwhile, or in a folder for reading only
                os.utime(self._folder / name)
        return content

    def _open(self, location: str) -> Any:
        from optuna import artifacts
        from optuna.exceptions import ExperimentalWarning

        url = urlsplit(location)
        if url.scheme in ("s3", "gs") and (not url.netloc or url.path.strip("/")):
            raise StorageError(f"{location}: name a bucket and no folder in it: {url.scheme}://BUCKET")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                if url.scheme == "s3":
                    return artifacts.Boto3ArtifactStore(url.netloc)
                if url.scheme == "gs":
                    return artifacts.GCSArtifactStore(url.netloc)
        except ImportError as error:
            library = {"s3": "boto3", "gs": "google-cloud-storage"}[url.scheme]
            raise StorageError(f"{location}: this location needs another library: pip install {library}") from error
        if "://" in location:
            raise StorageError(f"{location}: artifacts are kept in a folder, s3://BUCKET or gs://BUCKET")
        self._folder = Path(location).expanduser()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"artifacts cannot be kept in {location}: {error.strerror}") from error
        return artifacts.FileSystemArtifactStore(self._folder)

    def _evict(self, keep: str) -> None:
        assert self._folder is not None
        found = []
        for path in self._folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another worker was faster
                continue
            if len(path.name) == len(keep):
                found.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found, key=lambda entry: entry[0]):
            if held <= self._most_bytes:
                return
            if path.name != keep:
                path.unlink(missing_ok=True)
                held -= size
