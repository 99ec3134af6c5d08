"""Where a database URL may come from, and whom its password is kept from.

A password in the environment or in a file is seen by its owner alone. On the command line it is seen by everybody
on the machine (`ps`), and Ray keeps a driver's command line in its table of jobs and in its logs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from mergesearch.errors import StorageError, WorkerError
from mergesearch.storage.engine import redact

URL_VARIABLES = ("MERGESEARCH_STORAGE", "OPTUNA_STORAGE")
FILE_VARIABLE = "MERGESEARCH_STORAGE_FILE"
REMEDY = f"put the URL into MERGESEARCH_STORAGE, or into a file that {FILE_VARIABLE} names"


def storage_from_environment() -> str | None:
    """The URL in MERGESEARCH_STORAGE, else in the file that MERGESEARCH_STORAGE_FILE names, else in OPTUNA_STORAGE.

    Raises:
        StorageError: the file cannot be read, or holds anything but one line.
    """
    file = os.environ.get(FILE_VARIABLE)
    return (
        os.environ.get("MERGESEARCH_STORAGE")
        or (_only_line(file) if file else None)
        or os.environ.get("OPTUNA_STORAGE")
    )


def holds_password(text: str) -> bool:
    """Whether a database URL in the text has a password."""
    return redact(text) != text


def refuse_visible_password() -> None:
    """To be asked before Ray is: it stores the command line of this process, for all who can see its dashboard.

    Raises:
        WorkerError: there is a password in it.
    """
    if holds_password(" ".join(psutil.Process().cmdline())):
        raise WorkerError(f"Ray would record the password on the command line in its table of jobs: {REMEDY}.")


@contextmanager
def passwords_kept_from_children() -> Iterator[None]:
    """Processes that are started inside do not inherit database URLs with passwords; workers need no database."""
    kept = {name: value for name in URL_VARIABLES if holds_password(value := os.environ.get(name, ""))}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


def _only_line(file: str) -> str:
    try:
        lines = Path(file).read_text(encoding="utf-8").split()
    except OSError as error:
        raise StorageError(f"{FILE_VARIABLE}={file}: the file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StorageError(f"{FILE_VARIABLE}={file}: the file is no text") from None
    if len(lines) != 1:
        found = "empty" if not lines else f"{len(lines)} words"
        raise StorageError(
            f"{FILE_VARIABLE}={file}: the file is to hold one database URL and nothing else, found {found}"
        )
    return lines[0]
