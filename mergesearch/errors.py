"""The exceptions a user may see, all in one tree.

Every message says what was found, what was expected and what to do. Checks that can find several things
wrong collect `Problem`s and raise them together, so that nobody mends one line per attempt.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class MergesearchError(ValueError):
    """Base of all errors meant for people; `exit_code` is what the command line ends with."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where ("study.yaml:12", "source 'domain'")."""

    message: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ProblemsError(MergesearchError):
    """Several problems found in one pass, reported together."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem | str], heading: str = "") -> None:
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        lines = [str(p) for p in self.problems]
        if heading:
            lines = [heading, *(f"  {line}" for line in lines)]
        super().__init__("\n".join(lines))


class StudyFileError(ProblemsError):
    """The study file cannot be used as it stands."""


class SourceError(ProblemsError):
    """A source cannot be read, or sources do not fit each other."""


class CollectionError(ProblemsError):
    """A collection (corpus, queries, qrels) cannot be used."""


class MemoryPlanError(MergesearchError):
    """Sources, model, batches and caches do not fit the memory that is there."""

    exit_code = 2


class MergeError(MergesearchError):
    """Coefficients that no merge can be built from, such as weights that sum to zero."""


class EvaluationError(MergesearchError):
    """A merge was built but cannot be scored, for example because its embeddings are NaN."""


class MemoryFullError(MergesearchError):
    """Memory ran out in work that cannot be cut smaller. No recipe is to blame: none would fit."""


class StorageError(MergesearchError):
    """The study database cannot be reached, is locked, or cannot be written."""

    exit_code = 4


class ResumeError(StorageError):
    """A study of this name exists and differs in something that could change a score."""


class WorkerError(MergesearchError):
    """Workers could not be started, or died more often than they may."""

    exit_code = 5


class ExportError(MergesearchError):
    """An export was refused, failed, or did not score what was recorded."""

    exit_code = 6


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that is not among `known`, with the closest one suggested."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."
