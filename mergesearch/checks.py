"""Problems of a study file, collected with the lines that they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError

from mergesearch.errors import MergesearchError, Problem, ProblemsError, StudyFileError, unknown
from mergesearch.study_file import ParsedStudy

Key = str | int
_SOURCE = re.compile(r"source '([^']+)'")


class Checks:
    """Collects problems with the lines of the study file that they belong to."""

    def __init__(self, parsed: ParsedStudy) -> None:
        self._parsed = parsed
        self._keys: list[tuple[Key, ...]] = []
        self._problems: list[Problem] = []

    def add(self, message: str, *keys: Key) -> None:
        """Note a problem of the entry at `keys`; the same problem twice is one."""
        self._keys.append(keys)
        problem = Problem(message, self._parsed.where(*keys))
        if problem not in self._problems:
            self._problems.append(problem)

    def found_at(self, *keys: Key) -> bool:
        """Whether something at `keys` or below is a problem."""
        return any(k[: len(keys)] == keys for k in self._keys)

    @contextmanager
    def at(self, *keys: Key) -> Iterator[None]:
        """Errors raised inside become problems of the entry at `keys`, or of the source that they name."""
        try:
            yield
        except ProblemsError as error:
            for problem in error.problems:
                source = _SOURCE.fullmatch(problem.where)
                self.add(str(problem), *keys, *(source.groups() if source and keys == ("sources",) else ()))
        except MergesearchError as error:
            self.add(str(error), *keys)

    @contextmanager
    def below(self, *keys: Key) -> Iterator[None]:
        """Like `at`, for errors whose problems say by dotted keys where below `keys` they lie."""
        try:
            yield
        except StudyFileError as error:
            for problem in error.problems:
                inner = problem.where.split(".") if problem.where else []
                self.add(f"{'.'.join([*map(str, keys), *inner])}: {problem.message}", *keys, *inner)

    def options(self, model: type[BaseModel], options: Mapping[str, Any], *keys: Key, beside: type[BaseModel]) -> None:
        """Check a plug-in's options against its own model; `beside` is what else may stand at `keys`."""
        try:
            model(**options)
        except ValidationError as error:
            known = [*model.model_fields, *beside.model_fields]
            for e in error.errors(include_url=False):
                name = ".".join(str(k) for k in e["loc"])
                message = e["msg"].removeprefix("Value error, ")
                if e["type"] == "extra_forbidden":
                    message = unknown("key", name, known)
                elif e["type"] == "missing":
                    message = f"{name}: is required"
                elif name:
                    message = f"{name}: {message[:1].lower()}{message[1:]}, found {e['input']!r}"
                self.add(message, *keys, *e["loc"])

    def raise_if_any(self) -> None:
        """Raise the StudyFileError that lists everything found."""
        if self._problems:
            raise self._parsed.problems(self._problems)
