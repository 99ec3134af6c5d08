"""What can be checked of a study file's collections, objectives and guards from the file and the registries alone."""

from __future__ import annotations

from mergesearch.checks import Checks, Key
from mergesearch.errors import unknown
from mergesearch.evaluation.backends import BACKENDS
from mergesearch.evaluation.first_stages import FIRST_STAGES
from mergesearch.evaluation.formats import FORMATS
from mergesearch.evaluation.metrics import parse_metric
from mergesearch.evaluation.rerankers import FAMILIES
from mergesearch.evaluation_schema import CollectionEntry, FirstStageEntry
from mergesearch.merging.registry import METHODS
from mergesearch.study_file import ParsedStudy
from mergesearch.study_prompts import unused_lists


def _check_objectives(checks: Checks, parsed: ParsedStudy) -> None:
    collections, racing = parsed.content.evaluation.collections, parsed.content.search.racing
    keys = ("evaluation", "collections")
    names = dict.fromkeys(c.objective for c in collections)
    for i, c in enumerate(collections):
        if c.objective is None and len(names) > 1:
            checks.add("name an `objective` here as well, or none anywhere", *keys, i)
    for name in names:
        if not any(c.weight for c in collections if c.objective == name):
            what = "collections" if name is None else f"collections of objective {name!r}"
            checks.add(f"the {what} have no weight: give at least one a `weight` above 0", *keys)
    if racing is not None and len(names) > 1:
        message = "a trial cannot be stopped early by its value where there are several objectives: leave `racing` out"
        checks.add(message, "search", "racing")
    guarded = [i for i, c in enumerate(collections) if c.may_lose is not None]
    if guarded and not _gives_template(parsed):
        message = (
            f"is measured against the template alone, and no coefficients of {parsed.content.merge.method} give that: "
            "leave it out, or take another method or template"
        )
        checks.add(f"may_lose: {message}", *keys, guarded[0], "may_lose")


def _gives_template(parsed: ParsedStudy) -> bool:
    merge, sources = parsed.content.merge, list(parsed.content.sources)
    if merge.method not in METHODS or merge.template not in sources:
        return True  # a problem of its own
    method = METHODS[merge.method]
    base = merge.base if method.takes_base else None
    merged = [s for s in sources if s != base]
    return method.coefficients_for_source(merge.template, merged, base, merge.template) is not None


_OF_BI_ENCODERS = ("pooling", "normalize", "similarity", "append_eos")


def _check_reranking(checks: Checks, parsed: ParsedStudy) -> None:
    """First stages and families against their registries, and nothing said that only bi-encoders read."""
    evaluation = parsed.content.evaluation
    keys: tuple[Key, ...] = ("evaluation",)
    own = [(i, c.first_stage) for i, c in enumerate(evaluation.collections) if c.first_stage is not None]
    if evaluation.rerank is None:
        for i, _ in own:
            message = "candidates are for re-rankers: write `rerank: {}` under `evaluation`, or leave this out"
            checks.add(message, *keys, "collections", i, "first_stage")
        return
    entry = evaluation.rerank
    if entry.family is not None and entry.family not in FAMILIES:
        checks.add(unknown("family of re-rankers", entry.family, FAMILIES), *keys, "rerank", "family")
    stages: list[tuple[tuple[Key, ...], FirstStageEntry]]
    stages = [((*keys, "rerank", "first_stage"), entry.first_stage)]
    stages += [((*keys, "collections", i, "first_stage"), stage) for i, stage in own]
    for where, stage in stages:
        if stage.kind not in FIRST_STAGES:
            checks.add(unknown("first stage", stage.kind, FIRST_STAGES), *where, "kind")
        else:
            checks.options(FIRST_STAGES[stage.kind], stage.options, *where, beside=FirstStageEntry)
    for name in _OF_BI_ENCODERS:
        if getattr(evaluation, name) is not None:
            checks.add(f"`{name}` is read by bi-encoders, and a re-ranker scores pairs: leave it out", *keys, name)
    prompted: list[tuple[Key, ...]] = [
        (*keys, "collections", i) for i, c in enumerate(evaluation.collections) if c.prompts.given
    ]
    for where in [*prompted, *([keys] if evaluation.prompts.given else [])]:
        message = "what stands around texts is a re-ranker's template: write `rerank: {query_template: …}`"
        checks.add(message, *where, "prompts")
    for name, wanted in _PLACEHOLDERS.items():
        text = getattr(entry, name)
        lacking = [] if text is None else [f"{{{word}}}" for word in wanted if f"{{{word}}}" not in text]
        if lacking:
            checks.add(f"the template lacks {' and '.join(lacking)}, where the text goes", *keys, "rerank", name)
    if parsed.content.workers.gpus > 1:
        checks.add("a re-ranker lies on one GPU of a worker: leave it out", "workers", "gpus")
    if parsed.content.merge.examples is not None:
        message = "losses of re-rankers are not measured: remove `examples:` and give all losses as numbers"
        checks.add(message, "merge", "examples")


_PLACEHOLDERS = {"template": ("query", "document"), "query_template": ("query",), "document_template": ("document",)}


def check_evaluation(parsed: ParsedStudy, checks: Checks) -> None:
    """Collections with their formats' options, prompts, objectives, guards, metric and search backend."""
    evaluation = parsed.content.evaluation
    names = [c.name for c in evaluation.collections]
    for i, collection in enumerate(evaluation.collections):
        keys = ("evaluation", "collections", i)
        if names[i] in names[:i]:
            checks.add(f"two collections are called {names[i]!r}", *keys, "name")
        if collection.format not in FORMATS:
            checks.add(unknown("collection format", collection.format, FORMATS), *keys, "format")
            continue
        options = FORMATS[collection.format].options
        checks.options(options, collection.options, *keys, beside=CollectionEntry)
        if collection.test and not checks.found_at(*keys):
            name, merged = collection.tested
            if name not in FORMATS:
                checks.add(unknown("collection format", name, FORMATS), *keys, "test", "format")
            else:
                checks.options(FORMATS[name].options, merged, *keys, "test", beside=CollectionEntry)
    for kind in unused_lists(evaluation):
        checks.add(
            "every collection has a prompt of its own, so this list is not searched", "evaluation", "prompts", kind
        )
    _check_objectives(checks, parsed)
    _check_reranking(checks, parsed)
    with checks.at("evaluation", "metric"):
        parse_metric(evaluation.metric)
    if evaluation.search not in BACKENDS:
        checks.add(unknown("search backend", evaluation.search, BACKENDS), "evaluation", "search")
