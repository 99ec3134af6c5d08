"""The study file: YAML, read with every problem reported at once and with its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from mergesearch.errors import Problem, StudyFileError
from mergesearch.study_prompts import prompt_files, read_prompt_list, with_prompt_files
from mergesearch.study_schema import StudyFile
from mergesearch.yaml_problems import explain, plain, where


@dataclass(frozen=True)
class ParsedStudy:
    """A study file that fits the schema, with the way back to its lines."""

    content: StudyFile
    path: Path
    text: str
    tree: Any

    @property
    def folder(self) -> Path:
        """What relative paths in the file start from."""
        return self.path.parent

    def where(self, *keys: str | int) -> str:
        """Such as `study.yaml:12`, for the entry at `keys`, or for its closest parent."""
        return where(self.path, self.tree, keys)

    def problems(self, problems: Sequence[Problem]) -> StudyFileError:
        """The error that reports `problems` in the order of their lines."""
        return _error(self.path, problems)


def parse_study(path: Path) -> ParsedStudy:
    """Read and check a study file without looking at any model or collection.

    Raises:
        StudyFileError: with every problem that the schema finds, each with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyFileError([f"there is no study file {path}"]) from None
    except IsADirectoryError:
        raise StudyFileError([f"{path} is a folder; name the study file in it"]) from None
    except OSError as error:
        raise StudyFileError([f"{path} cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise StudyFileError([f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"]) from None
    return parse_study_text(text, path)


def parse_study_text(text: str, path: Path) -> ParsedStudy:
    """Like `parse_study`, for text that is already read; `path` names it in messages."""
    try:
        tree = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        raise StudyFileError([Problem(f"not valid YAML: {error.problem or error.context}", line)]) from None
    if not isinstance(tree, Mapping):
        raise StudyFileError([Problem("expected a mapping with `study:`, `sources:`, `merge:`, …", str(path))])
    try:
        content = StudyFile.model_validate(plain(tree))
    except ValidationError as error:
        raise _error(path, explain(error, StudyFile, path, tree, lambda keys: _belongs(keys, tree))) from None
    return ParsedStudy(_with_prompts(content, path, tree), path, text, tree)


def _with_prompts(content: StudyFile, path: Path, tree: Any) -> StudyFile:
    """With the lists of prompts that lie in files of their own."""
    read: dict[str, list[str]] = {}
    problems = []
    for keys, file in prompt_files(content).items():
        try:
            read[file] = read_prompt_list(path.parent / Path(file).expanduser())
        except StudyFileError as error:
            problems += [Problem(problem.message, where(path, tree, keys)) for problem in error.problems]
    if problems:
        raise _error(path, problems)
    return with_prompt_files(content, read) if read else content


def _belongs(keys: tuple[str | int, ...], tree: Any) -> str:
    """Where a strategy's option belongs that was written beside the strategy."""
    from mergesearch.search.registry import STRATEGIES  # takes a second, and only a mistake needs it

    if len(keys) != 2 or keys[0] != "search":
        return ""
    option, entry = str(keys[1]), tree["search"].get("strategy")
    chosen = entry.get("name") if isinstance(entry, Mapping) else entry
    owners = [name for name, strategy in STRATEGIES.items() if option in strategy.Options.model_fields]
    if not owners:
        return ""
    owner = chosen if chosen in owners else owners[0]
    return f"is an option of {owner}: write it under `strategy`, as in `strategy: {{name: {owner}, {option}: …}}`"


def storage_url(content: StudyFile, option: str | None = None) -> str:
    """Which database, by the first of these that is given.

    `--storage`, MERGESEARCH_STORAGE, the file that MERGESEARCH_STORAGE_FILE names, OPTUNA_STORAGE, the study file, and
    `sqlite:///STUDY.db` in the current folder.

    Raises:
        StorageError: the file that MERGESEARCH_STORAGE_FILE names holds no URL.
    """
    from mergesearch.storage.secrets import storage_from_environment  # SQLAlchemy and Optuna take a second to import

    return option or storage_from_environment() or content.storage or f"sqlite:///{content.study}.db"


def artifact_location(parsed: ParsedStudy) -> str | None:
    """Where the file says that embeddings are kept: a bucket, or a folder as this process reaches it."""
    location = parsed.content.artifacts
    if location is None or "://" in location:
        return location
    return str(parsed.folder / Path(location).expanduser())


def _error(path: Path, problems: Sequence[Problem]) -> StudyFileError:
    found = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    ordered: list[Problem | str] = [*sorted(problems, key=_line)]
    return StudyFileError(ordered, heading=f"{path}: {found}")


def _line(problem: Problem) -> int:
    number = problem.where.rpartition(":")[2]
    return int(number) if number.isdigit() else 0
