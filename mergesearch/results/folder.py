"""Making a folder in one stroke: whole under its name, or not there at all, however the process ends.

What is made grows in `.NAME.partial-…` beside the destination and is renamed when it is done, after the disk has
confirmed it. The maker holds a lock on its partial folder that the system frees when it dies, so the next one that
makes the same folder knows which leftovers nobody owns, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mergesearch.errors import ExportError

RECIPE_FILE = "mergesearch.json"
"""What every export holds, and how an earlier export is told from anything else."""


def check_destination(out: Path, *, force: bool, needed: Collection[Path] = ()) -> None:
    """Refuse to make or replace what must not be.

    Args:
        out: the folder to make.
        force: replace an earlier export, or an empty folder.
        needed: folders that are read while `out` is made.

    Raises:
        ExportError: something else stands there, or `force` is needed.
    """
    out = _real(out)
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ExportError(f"{out} exists and is not a folder; remove it or choose another name")
    if not force:
        raise ExportError(f"{out} exists; choose another folder or replace it with --force")
    try:
        foreign = any(out.iterdir()) and not (out / RECIPE_FILE).is_file()
    except OSError as error:
        raise ExportError(f"cannot read {out}: {error.strerror}") from error
    if foreign:
        raise ExportError(
            f"{out} holds files, but no {RECIPE_FILE}: it is not an export, and --force does not replace it. "
            "Choose another folder, or empty this one yourself"
        )
    for folder in needed:
        if folder.resolve().is_relative_to(out):
            raise ExportError(f"{out} is or holds a source of this study; choose another folder")


@contextmanager
def made_whole(out: Path, *, force: bool) -> Iterator[Path]:
    """Yields an empty folder that becomes `out` when the block ends well, and vanishes when it does not.

    Leftovers of processes that were killed are removed first; an earlier export that such a process had moved
    aside, and not yet replaced, is put back.

    Raises:
        ExportError: the place cannot be written, or `out` came into being meanwhile.
    """
    out = _real(out)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(out.parent):
            _clean(out)
            check_destination(out, force=force)
            partial = Path(tempfile.mkdtemp(prefix=_prefix(out, "partial"), dir=out.parent))
            lock = _lock(partial)
    try:
        yield partial
        with writing(out):
            _settle(partial)
            with _alone_in(out.parent):
                check_destination(out, force=force)
                _swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns what goes wrong on the disk into an `ExportError`; `made_whole` removes what was written."""
    try:
        yield
    except SafetensorError as error:  # safetensors reports a full disk in an exception of its own
        raise ExportError(f"could not write {out}: {error}; nothing was left behind") from error
    except OSError as error:
        raise ExportError(f"could not write {out}: {error.strerror or error}; nothing was left behind") from error


def _swap(partial: Path, out: Path) -> None:
    """Rename `partial` to `out`, and remove what stood there.

    Between the first two renames an earlier export stands under no name but `.NAME.replaced-…`; if the process
    dies just there, `_clean` puts it back.
    """
    replaced = None
    token = partial.name.removeprefix(_prefix(out, "partial"))
    if os.path.lexists(out):
        replaced = out.rename(out.with_name(_prefix(out, "replaced") + token))
    partial.rename(out)
    _sync(out.parent)
    if replaced is not None:
        # While it is being deleted it must not be taken for something to put back.
        trash = replaced.rename(out.with_name(f"{_prefix(out, 'partial')}old-{token}"))
        shutil.rmtree(trash, ignore_errors=True)


def _clean(out: Path) -> None:
    """Remove what killed processes left beside `out`."""
    for leftover in sorted(out.parent.iterdir()):
        if leftover.name.startswith(_prefix(out, "replaced")):
            if os.path.lexists(out):
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.rename(out)
        elif leftover.name.startswith(_prefix(out, "partial")) and leftover.is_dir():
            with contextlib.suppress(OSError):  # BlockingIOError: its maker lives
                lock = os.open(leftover, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(leftover, ignore_errors=True)
                finally:
                    os.close(lock)


def _real(out: Path) -> Path:
    """Where it really is: a link stays, and what it points to is made or replaced."""
    return Path(os.path.realpath(out))


def _prefix(out: Path, what: str) -> str:
    return f".{out.name}.{what}-"


def _lock(folder: Path) -> int:
    """An open descriptor that holds the folder's lock; file systems without locks are put up with."""
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """Nobody else that makes folders in `parent` is between looking and renaming."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _settle(folder: Path) -> None:
    """Usual permissions, and everything on the disk: a rename may outlive a power cut that its files do not."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)  # some writers keep files to the user alone
        _sync(path)
    folder.chmod(0o777 & ~mask)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
