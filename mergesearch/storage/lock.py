"""One process per SQLite file; whoever comes second is told who is there.

SQLite is made for one writing process, so the lock covers the whole file. The system frees it when its holder dies,
however it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from mergesearch.errors import StorageError

# A forked child shares its parent's open file, and with it the lock, which would then outlive the parent.
_held: set[int] = set()


def _forget_in_child() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


class FileLock:
    """The right to write a file: `flock` on `<database>.lock`, which stays and says who holds it.

    Raises:
        StorageError: another process has it (named), or the place cannot be written.
    """

    def __init__(self, path: Path, study_name: str) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            raise StorageError(
                f"the folder {path.parent} of the study database does not exist. Run: mkdir -p {path.parent}"
            ) from None
        except OSError as error:
            raise StorageError(
                f"cannot write in the folder {path.parent} ({error.strerror}). A study needs a folder "
                "where it may create files: name another with --storage sqlite:////path/to/study.db"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StorageError(
                f"{path} is in use by {self._holder()}. SQLite serves one coordinator: wait for that "
                "process, stop it, or give this study a file of its own (--storage sqlite:///other.db). "
                "PostgreSQL serves several."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise StorageError(f"{self.path} cannot be locked on this file system ({error.strerror}).") from None
        self._descriptor = descriptor
        _held.add(descriptor)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "study": study_name}
        with contextlib.suppress(OSError):  # a full disk must not keep a reader of scores out
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Empties the lock file and unlocks it; the file stays, since removing it would be a race."""
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)

    def _holder(self) -> str:
        try:
            holder = json.loads(self.path.read_text())
            return f"process {holder['pid']} on {holder['host']} (study {holder['study']!r}, since {holder['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
