"""Making a report: reading the study, encoding examples where that can be done, writing the page in one stroke."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mergesearch.errors import MergesearchError, ResumeError, StudyFileError
from mergesearch.resolving import resolve
from mergesearch.results.recorded import check_unchanged
from mergesearch.results.report.answer import answer
from mergesearch.results.report.examples import Examples, encode_examples
from mergesearch.results.report.held_out import held_out
from mergesearch.results.report.page import GENERATOR, LISTED, render_report
from mergesearch.results.report.remembered import remembered_study
from mergesearch.results.view import StudyView, read_view
from mergesearch.storage.store import StudyStore
from mergesearch.study_file import ParsedStudy
from mergesearch.workers.evaluator_spec import BatchProgress


class ReportError(MergesearchError):
    """The page cannot be written where it was asked for."""

    exit_code = 2


@dataclass(frozen=True)
class Written:
    """A report that was written: its first sentence, and why it shows no rankings, empty where it does."""

    answer: str
    why: str


def write_report(
    parsed: ParsedStudy,
    store: StudyStore,
    out: Path,
    *,
    n_examples: int = LISTED,
    progress: BatchProgress | None = None,
) -> Written:
    """Write the page of a study.

    Args:
        parsed: the study file.
        store: the study's records.
        out: the file; an earlier report there is replaced.
        n_examples: queries in each list with their top documents; 0 encodes nothing.
        progress: called after every batch of the encoding.

    Raises:
        ReportError: something else than a report stands there, or the file cannot be written.
        StudyFileError: the study file does not fit its schema.
    """
    check_page(out)
    view, missing = view_of(parsed, store)
    examples, why = None, "Top documents were not asked for (--examples 0)."
    if missing:
        why = missing
    elif n_examples:
        examples, why = _examples(view, store, progress)
        why = _relative(why, parsed)
    tests = held_out(view)
    write_page(out, render_report(view, tests, examples=examples, n_examples=n_examples, why=why))
    return Written(answer(view, tests).sentence, why)


def view_of(parsed: ParsedStudy, store: StudyStore) -> tuple[StudyView, str]:
    """A study as its database and its files tell it; and what of the files is gone or changed, nothing if nothing is.

    Raises:
        StudyFileError: the study file is wrong, or sources are gone and it does not describe the recorded study.
        ResumeError: it describes another study.
    """
    try:
        study = resolve(parsed)
        check_unchanged(study, store)
        return read_view(study, store), ""
    except (StudyFileError, ResumeError) as error:
        remembered = remembered_study(parsed, store)
        if remembered is None:
            raise
        why = f"Told from the database alone, not from models and texts: {error}"
        return read_view(remembered, store), _relative(why, parsed)


def check_page(out: Path) -> None:
    """Refuse to replace what is no page of ours, before anything is worked out.

    Raises:
        ReportError: naming what stands there, or the folder that does not.
    """
    if not out.parent.is_dir():
        raise ReportError(f"there is no folder {out.parent}; make it, or name another file")
    if not out.exists():
        return
    try:
        with out.open(encoding="utf-8", errors="replace") as file:
            ours = f'content="{GENERATOR}"' in file.read(4000)
    except OSError as error:
        raise ReportError(f"cannot read {out}: {error.strerror}") from error
    if not ours:
        raise ReportError(f"{out} exists and is no report; remove it or choose another name")


def write_page(out: Path, text: str) -> None:
    """Write a page whole, or not at all.

    Raises:
        ReportError: the disk is full, or the folder may not be written to.
    """
    partial = ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=out.parent, prefix=f".{out.name}.", delete=False
        ) as file:
            partial = file.name
            file.write(text)
        Path(partial).chmod(0o666 & ~_umask())
        Path(partial).replace(out)
    except OSError as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        raise ReportError(f"cannot write {out}: {error.strerror}") from error


def _relative(text: str, parsed: ParsedStudy) -> str:
    """Without the folders in which somebody's files lie: pages are handed on."""
    folder = parsed.folder.resolve()
    return text.replace(f"{folder}{os.sep}", "").replace(f"{Path.home()}{os.sep}", f"~{os.sep}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _examples(view: StudyView, store: StudyStore, progress: BatchProgress | None) -> tuple[Examples | None, str]:
    """Rankings, or why there are none: a report is not lost for want of examples."""
    try:
        return encode_examples(view, store, progress), ""
    except (MergesearchError, OSError) as error:
        return None, f"Top documents are not shown: {error}"
