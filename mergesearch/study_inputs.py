"""What a study file names, found and opened: sources, collections, and how the template encodes texts.

Headers, configurations and texts are read, and no weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergesearch.checks import Checks
from mergesearch.errors import SourceError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.examples import (
    CompletionExample,
    ExampleSet,
    RetrievalExample,
    draw_examples,
    read_completion_examples,
    read_retrieval_examples,
)
from mergesearch.evaluation.formats import load_collection
from mergesearch.evaluation.settings import Choices, resolve, stated_prompts
from mergesearch.sources.adapter import open_source
from mergesearch.sources.adapter_config import read_adapter_config
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.groups import Grouping
from mergesearch.sources.locate import holds_adapter, locate, model_folder
from mergesearch.study_file import ParsedStudy
from mergesearch.study_prompts import given_prompts, searched_prompts
from mergesearch.study_schema import SourceEntry
from mergesearch.workers.evaluator_spec import CollectionSpec

_NOT_ENCODING = frozenset({"config.json", "mergesearch.json", "requirements.txt"})


def open_sources(parsed: ParsedStudy, checks: Checks) -> tuple[dict[str, Path], dict[str, Checkpoint]]:
    """Find every source, downloading it where needed, and read its headers.

    Returns:
        By source: the folder of its model, which is its base's for an adapter, and what it holds.
    """
    located: dict[str, Path] = {}
    for name, source in parsed.content.sources.items():
        with checks.at("sources", name):
            located[name] = _locate(source, parsed)
    folders, checkpoints = {}, {}
    for name, found in located.items():
        with checks.at("sources", name):
            adapts = holds_adapter(found) or parsed.content.sources[name].adapter_of is not None
            folder = _base_of(name, parsed, located) if adapts else found
            if folder is not None:
                checkpoints[name] = open_source(name, folder, found if adapts else None)
                folders[name] = folder
    return folders, checkpoints


def _locate(source: SourceEntry, parsed: ParsedStudy) -> Path:
    """Where a source is; of a folder that is not there, what the study file's comments say of it."""
    try:
        return locate(source.model, revision=source.revision, relative_to=parsed.folder)
    except SourceError as error:
        folder = source.model.lstrip("./")
        comments = [line.strip("# ") for line in parsed.text.splitlines() if line.startswith("#") and folder in line]
        if not comments:
            raise
        raise SourceError([f"{problem} The file says: {comments[0]}" for problem in error.problems]) from None


def _base_of(name: str, parsed: ParsedStudy, located: Mapping[str, Path]) -> Path | None:
    """The folder of an adapter's base; None where that is a source with a problem of its own."""
    base = parsed.content.sources[name].adapter_of
    if base is None:
        return read_adapter_config(located[name]).locate_base(parsed.folder)
    if base in located and (base == name or holds_adapter(located[base])):
        raise SourceError([f"adapter_of: {base!r} is an adapter itself; name the model that it was trained on."])
    return located.get(base)


def check_encoding(parsed: ParsedStudy, template: Path, checks: Checks) -> None:
    """Study file and template have to say together how texts are encoded."""
    evaluation = parsed.content.evaluation
    # One length opens the template; each kind of text is then cut to its own.
    lengths = (evaluation.max_length.query, evaluation.max_length.document)
    longest = max(n for n in lengths if n is not None) if None not in lengths else None
    choices = Choices(evaluation.pooling, evaluation.normalize, evaluation.similarity, longest)
    with checks.at("evaluation"):
        files = resolve(template, choices).files
        prompts = stated_prompts(files)
        given: list[tuple[tuple[str | int, ...], Mapping[str, str | None]]]
        given = [(("evaluation", "collections", i), c.prompts) for i, c in enumerate(collection_specs(parsed))]
        if parsed.content.merge.examples is not None:
            given.append((("merge", "examples"), given_prompts(evaluation, parsed.content.merge.examples.prompts)))
        for keys, own in given:
            for kind, prompt in prompts.items():
                if prompt is None and own[kind] is None:
                    names = ", ".join(repr(name) for name, text in files.prompts.items() if text)
                    message = (
                        f"the template has prompts named {names}, and none is said to be for a {kind}: give the text "
                        f"under `prompts: {{{kind}: …}}` (an empty text for none)"
                    )
                    checks.add(message, *keys)


def read_collections(parsed: ParsedStudy, checks: Checks) -> tuple[Collection, ...]:
    """The dev splits of every collection whose entry is sound."""
    collections = []
    for i, spec in enumerate(collection_specs(parsed)):
        if not checks.found_at("evaluation", "collections", i):
            with checks.at("evaluation", "collections", i):
                collections.append(spec.load())
    return tuple(collections)


def read_example_set(parsed: ParsedStudy) -> ExampleSet | None:
    """The examples that sources are judged by; None where the study file names none.

    Raises:
        CollectionError: with everything that is wrong with them.
    """
    entry = parsed.content.merge.examples
    if entry is None:
        return None
    seed = parsed.content.seed if entry.seed is None else entry.seed
    retrieval: tuple[RetrievalExample, ...] = ()
    completions: tuple[CompletionExample, ...] = ()
    path = parsed.folder / Path(entry.file or "").expanduser()
    if entry.collection is not None:
        c = entry.collection
        judged = load_collection(c.format, c.options, name="examples", split=c.split, relative_to=parsed.folder)
        retrieval = draw_examples(judged, n=entry.n, negatives=entry.negatives, seed=seed)
    elif entry.loss == "contrastive":
        retrieval = read_retrieval_examples(path, n=entry.n, negatives=entry.negatives, seed=seed)
    else:
        completions = read_completion_examples(path, n=entry.n, seed=seed)
    prompts = given_prompts(parsed.content.evaluation, entry.prompts)
    return ExampleSet(retrieval, completions, entry.batch_size, entry.temperature, prompts)


def collection_specs(parsed: ParsedStudy, *, test: bool = False) -> tuple[CollectionSpec, ...]:
    """The collections of a study file: the dev splits that trials are scored on, or the whole test splits."""
    content = parsed.content
    searched = searched_prompts(content.evaluation)
    return tuple(
        CollectionSpec(
            name=c.name,
            format=c.tested[0] if test else c.format,
            options=c.tested[1] if test else c.options,
            split=c.test_split if test else c.split,
            relative_to=parsed.folder,
            queries=None if test else c.queries,
            pool_negatives=None if c.pool is None else c.pool.test_negatives if test else c.pool.negatives,
            seed=content.seed,
            weight=c.weight,
            prompts=given_prompts(content.evaluation, c.prompts),
            choices={} if test else {kind: d.names for kind, d in searched[c.name].items()},
            subsample=None if test or c.subsample is None else (c.subsample.queries, c.subsample.seed),
        )
        for c in content.evaluation.collections
    )


def grouping(parsed: ParsedStudy) -> Grouping:
    """How the study file divides the model."""
    entry = parsed.content.merge.groups
    return Grouping(
        segments=entry.segments,
        boundaries=None if entry.boundaries is None else tuple(entry.boundaries),
        per_layer=entry.per_layer,
        components=entry.components,
        embeddings=entry.embeddings,
        final_norm=entry.final_norm,
        pooler=entry.pooler,
        head=entry.head,
        decoder=entry.decoder,
    )


def encoding_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that say how a template tokenises, prompts, pools, projects and normalises.

    These are its small files, the whole folders of further sentence-transformers modules with their weights,
    and all Python files where the template names code of its own. The transformer's `config.json` and weights
    are not among them: they are part of a source's content hash.
    """
    modules = _json(folder / "modules.json")
    listed = [m for m in modules if isinstance(m, dict)] if isinstance(modules, list) else []
    further = [folder / str(m["path"]) for m in listed if m.get("path")]
    whole = {f for f in further if f.resolve() != model_folder(folder).resolve()}
    code = any(not str(m.get("type", "")).startswith("sentence_transformers.") for m in listed) or _names_code(folder)

    def matters(file: Path) -> bool:
        name = file.relative_to(folder).as_posix()
        if name in _NOT_ENCODING or name.startswith(".") or not file.is_file():
            return False
        if not whole.isdisjoint(file.parents) or (code and file.suffix == ".py"):
            return True
        return file.suffix in (".json", ".txt", ".model") and not name.endswith(".index.json")

    return {f.relative_to(folder).as_posix(): _sha256(f) for f in sorted(folder.rglob("*")) if matters(f)}


def _names_code(folder: Path) -> bool:
    """Whether configurations map classes to Python files, which trusted templates are loaded with."""
    configs = [_json(file) for file in {*folder.glob("*config.json"), *model_folder(folder).glob("*config.json")}]
    return any(isinstance(config, dict) and "auto_map" in config for config in configs)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError):  # whoever reads it for its content reports it
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
