"""What a study file names, found and opened: sources, collections, and how the template encodes texts.

Headers, configurations and texts are read, and no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
from mergesearch.evaluation.rerank_settings import FirstStageSpec, RerankSettings
from mergesearch.evaluation.rerankers import Family
from mergesearch.evaluation.settings import Choices, resolve, stated_prompts
from mergesearch.evaluation_schema import CollectionEntry, FirstStageEntry
from mergesearch.sources.adapter import open_source
from mergesearch.sources.adapter_config import read_adapter_config
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.groups import Grouping
from mergesearch.sources.locate import holds_adapter, locate
from mergesearch.study_file import ParsedStudy
from mergesearch.study_prompts import given_prompts, searched_prompts
from mergesearch.study_schema import SourceEntry
from mergesearch.workers.evaluator_spec import CollectionSpec


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


def check_family(parsed: ParsedStudy, family: Family, checks: Checks) -> None:
    """Nothing may be said of pairs that the family does not read: it would change nothing."""
    entry = parsed.content.evaluation.rerank
    for name in ("template", "query_template", "document_template", "instruction", "tokens"):
        if getattr(entry, name) is not None and name not in family.reads:
            read = ", ".join(sorted(family.reads))
            checks.add(f"{family.name} does not read `{name}`, but {read}", "evaluation", "rerank", name)
    settings = rerank_settings(parsed, family.name)
    if settings is not None and settings.template is not None and "template" in family.reads:
        with checks.at("evaluation", "rerank", "template"):
            family.check_template(settings.template)


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
            queries=c.test_queries if test else c.queries,
            pool_negatives=None if c.pool is None else c.pool.test_negatives if test else c.pool.negatives,
            seed=content.seed,
            weight=c.weight,
            prompts=given_prompts(content.evaluation, c.prompts),
            choices={} if test else {kind: d.names for kind, d in searched[c.name].items()},
            subsample=None if test or c.subsample is None else (c.subsample.queries, c.subsample.seed),
            first_stage=_first_stage(parsed, c),
        )
        for c in content.evaluation.collections
    )


def _first_stage(parsed: ParsedStudy, collection: CollectionEntry) -> FirstStageSpec:
    """A collection's own first stage, or the study's; of a study that does not re-rank nobody asks."""
    rerank = parsed.content.evaluation.rerank
    entry = collection.first_stage or (FirstStageEntry(depth=100) if rerank is None else rerank.first_stage)
    return FirstStageSpec(entry.kind, entry.options, entry.depth, parsed.folder)


def rerank_settings(parsed: ParsedStudy, family: str | None) -> RerankSettings | None:
    """How pairs are scored; None where merges are bi-encoders that rank the corpus.

    Args:
        parsed: the study file.
        family: what the template is, see `detect_family`; None for what the study file says, if it does.
    """
    entry = parsed.content.evaluation.rerank
    if entry is None:
        return None
    return RerankSettings(
        family=family or entry.family,
        fusion=entry.fusion,
        max_length=entry.max_length,
        template=entry.template,
        query_template=entry.query_template,
        document_template=entry.document_template,
        instruction=entry.instruction,
        tokens=None if entry.tokens is None else (entry.tokens[0], entry.tokens[1]),
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
