"""The prompts of a study file: what is put before texts, and between what the search chooses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mergesearch.errors import StudyFileError
from mergesearch.evaluation.settings import KINDS, Kind
from mergesearch.evaluation_schema import EvaluationEntry, GivenPromptsEntry, PromptListEntry, PromptsEntry, repeated
from mergesearch.search.dimension import Dimension
from mergesearch.search.prompts import prompt_dimension
from mergesearch.study_schema import StudyFile

Keys = tuple[str | int, ...]


def read_prompt_list(file: Path) -> list[str]:
    """The texts of a file of prompts.

    Raises:
        StudyFileError: it cannot be read, or is no list of different texts.
    """
    try:
        content: Any = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StudyFileError([f"prompts of {file} cannot be read: {error.strerror}"]) from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise StudyFileError([f"{file} is not valid YAML: {str(error).splitlines()[0]}"]) from None
    if not isinstance(content, list) or not content or not all(isinstance(text, str) for text in content):
        raise StudyFileError([f'{file} holds no list of texts, such as `- "query: "` a line'])
    if twice := repeated(content):
        raise StudyFileError([f"{file} lists {twice[0]!r} twice"])
    return content


def prompt_files(content: StudyFile) -> dict[Keys, str]:
    """The files of prompts that a study file names, by where it does."""
    found = {}
    for keys, entry in _entries(content.evaluation).items():
        for kind in KINDS:
            listed = getattr(entry, kind)
            if isinstance(listed, PromptListEntry) and listed.file is not None:
                found[(*keys, kind, "file")] = listed.file
    return found


def with_prompt_files(content: StudyFile, read: Mapping[str, list[str]]) -> StudyFile:
    """The study file with the texts of its files of prompts in place."""

    def filled(entry: PromptsEntry) -> PromptsEntry:
        listed = {kind: getattr(entry, kind) for kind in KINDS}
        texts: dict[str, Any] = {
            kind: found.model_copy(update={"values": read[found.file]})
            for kind, found in listed.items()
            if isinstance(found, PromptListEntry) and found.file is not None
        }
        return entry.model_copy(update=texts)

    evaluation = content.evaluation
    collections = [c.model_copy(update={"prompts": filled(c.prompts)}) for c in evaluation.collections]
    changed = {"prompts": filled(evaluation.prompts), "collections": collections}
    return content.model_copy(update={"evaluation": evaluation.model_copy(update=changed)})


def given_prompts(evaluation: EvaluationEntry, own: PromptsEntry | GivenPromptsEntry) -> dict[str, str | None]:
    """What stands before texts where nothing is picked: an entry's own prompts, or the study's, of a list the first."""
    found: dict[str, str | None] = {}
    for kind in KINDS:
        entry = getattr(own, kind) if getattr(own, kind) is not None else getattr(evaluation.prompts, kind)
        found[kind] = entry.values[0] if isinstance(entry, PromptListEntry) else entry
    return found


def searched_prompts(evaluation: EvaluationEntry) -> dict[str, dict[str, Dimension]]:
    """By collection and kind the dimension that decides what stands before its texts; those that are searched."""
    found: dict[str, dict[str, Dimension]] = {}
    for collection in evaluation.collections:
        of_collection = found.setdefault(collection.name, {})
        for kind in KINDS:
            own, shared = getattr(collection.prompts, kind), getattr(evaluation.prompts, kind)
            if isinstance(own, PromptListEntry):
                of_collection[kind] = prompt_dimension(kind, own.values, collection.name)
            elif own is None and isinstance(shared, PromptListEntry):
                of_collection[kind] = prompt_dimension(kind, shared.values)
    return found


def prompt_dimensions(evaluation: EvaluationEntry) -> tuple[Dimension, ...]:
    """The prompts that are searched, each once: those of all collections first."""
    found = {d.name: d for dimensions in searched_prompts(evaluation).values() for d in dimensions.values()}
    return tuple(sorted(found.values(), key=lambda d: d.name.count(".") > 1))


def unused_lists(evaluation: EvaluationEntry) -> list[Kind]:
    """The kinds whose list for all collections no collection takes."""
    used = {d.name for d in prompt_dimensions(evaluation)}
    return [
        k for k in KINDS if isinstance(getattr(evaluation.prompts, k), PromptListEntry) and f"prompt.{k}" not in used
    ]


def _entries(evaluation: EvaluationEntry) -> dict[Keys, PromptsEntry]:
    """Every entry of prompts that may hold lists, by where it is."""
    found: dict[Keys, PromptsEntry] = {("evaluation", "prompts"): evaluation.prompts}
    for i, collection in enumerate(evaluation.collections):
        found["evaluation", "collections", i, "prompts"] = collection.prompts
    return found
