"""A study as a job of a Ray cluster: what travels there, and what has to be there already.

The study file travels, and the files of examples and prompts that it names. Models, adapters and collections
do not: every node reads them itself, from storage that all nodes share or from the hub. Nor does the database's URL
where it has a password, since a cluster shows its jobs' descriptions to everybody who reaches its dashboard.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mergesearch.errors import Problem, StorageError
from mergesearch.storage.engine import Database
from mergesearch.storage.secrets import FILE_VARIABLE, holds_password
from mergesearch.study_file import ParsedStudy, storage_url
from mergesearch.study_prompts import prompt_files
from mergesearch.study_schema import StudyFile

MOST_BYTES = 10 << 20
"""Of a file that travels with the study."""
ON_THE_CLUSTER = f"set MERGESEARCH_STORAGE or {FILE_VARIABLE} in the environment of the cluster's nodes"
_SHARED = "put it on storage that all nodes share and give its absolute path"


def pack(parsed: ParsedStudy, folder: Path) -> None:
    """Copy what travels to an empty folder, the study file as `study.yaml`.

    Raises:
        StudyFileError: with all paths that lead nowhere on a cluster, and a password that would travel.
    """
    problems = [Problem(message, parsed.where(*keys)) for keys, message in _problems(parsed)]
    if problems:
        raise parsed.problems(problems)
    shutil.copyfile(parsed.path, folder / "study.yaml")
    for file in _files(parsed).values():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(parsed.folder / file, folder / file)


def entrypoint(options: Sequence[str] = ()) -> str:
    """The job's command, in the folder that `pack` filled.

    Args:
        options: further options of `mergesearch run`.

    Raises:
        StorageError: a password is among them.
    """
    if holds_password(" ".join(options)):
        raise StorageError(f"the password in --storage would be part of the job's description: {ON_THE_CLUSTER}")
    return shlex.join(["python", "-m", "mergesearch", "run", "study.yaml", "--address", "auto", "--shared", *options])


def check_shared(content: StudyFile, option: str | None) -> None:
    """Refuse a database that other machines cannot reach; asked where the study runs.

    Raises:
        StorageError: it is an SQLite file.
    """
    database = Database.parse(storage_url(content, option))
    if database.is_sqlite:
        raise StorageError(f"{database.shown} is a file of one machine, which may go with it: {ON_THE_CLUSTER}")


def _problems(parsed: ParsedStudy) -> Iterator[tuple[tuple[str | int, ...], str]]:
    content = parsed.content
    if holds_password(parsed.text):  # comments travel, too
        (line, *_) = (i for i, text in enumerate(parsed.text.splitlines(), 1) if holds_password(text))
        yield ("storage",), f"a password may not travel (line {line}): remove it, and {ON_THE_CLUSTER}"
    for name, source in content.sources.items():
        if not source.model.startswith("package:") and _is_relative(source.model, parsed.folder):
            message = f"the folder {source.model!r} is on this machine: {_SHARED}, or give the model's name on the hub"
            yield ("sources", name, "model"), message
    if content.artifacts and "://" not in content.artifacts and not Path(content.artifacts).is_absolute():
        yield ("artifacts",), f"the folder {content.artifacts!r} would end with the job: {_SHARED}, or a bucket"
    for i, collection in enumerate(content.evaluation.collections):
        keys = ("evaluation", "collections", i)
        yield from _paths(keys, collection.options, parsed.folder)
        yield from _paths((*keys, "test"), collection.test, parsed.folder)
        if collection.first_stage is not None:
            yield from _stage_paths((*keys, "first_stage"), collection.first_stage.options, parsed.folder)
    if content.evaluation.rerank is not None:
        options = content.evaluation.rerank.first_stage.options
        yield from _stage_paths(("evaluation", "rerank", "first_stage"), options, parsed.folder)
    if content.merge.examples and content.merge.examples.collection:
        yield from _paths(("merge", "examples", "collection"), content.merge.examples.collection.options, parsed.folder)
    for place, file in _files(parsed).items():
        yield from ((place, message) for message in _travels_not(file, parsed.folder))


def _files(parsed: ParsedStudy) -> dict[tuple[str | int, ...], str]:
    """Files of examples and prompts that travel, by where the study file names them."""
    examples = parsed.content.merge.examples
    found = prompt_files(parsed.content)
    if examples is not None and examples.file is not None:
        found["merge", "examples", "file"] = examples.file
    return {keys: file for keys, file in found.items() if not Path(file).is_absolute()}


def _travels_not(file: str, folder: Path) -> Iterator[str]:
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()) or file.startswith("~"):
        yield f"{file!r} does not lie beside the study file: move it there, or {_SHARED}"
    elif not path.is_file():
        yield f"there is no file {path}"
    elif path.stat().st_size > MOST_BYTES:
        yield f"{file!r} is larger than the {MOST_BYTES >> 20} MiB that travel with a study: {_SHARED}"


def _paths(
    keys: tuple[str | int, ...], options: Mapping[str, Any], folder: Path
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The options of a collection that are paths on this machine."""
    for key, value in options.items():
        texts = value if isinstance(value, list) else value.values() if isinstance(value, Mapping) else [value]
        for text in map(str, texts):
            file = key in ("folder", "documents") or key.endswith("_file")
            if (file and not Path(text).is_absolute()) or (key.endswith("dataset") and _is_relative(text, folder)):
                yield (*keys, key), f"{text!r} is on this machine: {_SHARED}"


def _stage_paths(
    keys: tuple[str | int, ...], options: Mapping[str, Any], folder: Path
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The options of a first stage that are paths on this machine: run files, and models of no hub."""
    for key in options.keys() & {"file", "model"}:
        text = str(options[key])
        named = key == "model" and (text.startswith("package:") or not _is_relative(text, folder))
        if not named and not Path(text).is_absolute():
            yield (*keys, key), f"{text!r} is on this machine: {_SHARED}"


def _is_relative(location: str, folder: Path) -> bool:
    """Whether what may be a name on the hub is a path that starts from the study file."""
    if Path(location).is_absolute():
        return False
    return location.startswith((".", "~")) or (folder / location).exists()
