"""From a study file to a `Study`: everything it names is found, opened and compared, and no weight is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mergesearch.artifacts import check_location
from mergesearch.checks import Checks
from mergesearch.evaluation.rerankers import detect_family
from mergesearch.merging.registry import METHODS
from mergesearch.sources.adapter import AdaptedCheckpoint
from mergesearch.sources.alignment import check_sources, share_tokens
from mergesearch.sources.groups import make_groups
from mergesearch.sources.layout import EMBEDDINGS, read_layout
from mergesearch.sources.vocabulary import same_vocabulary
from mergesearch.study import Study
from mergesearch.study_checks import (
    check_coefficients,
    check_names,
    given_measurements,
    search_space,
)
from mergesearch.study_file import ParsedStudy, parse_study
from mergesearch.study_inputs import (
    check_encoding,
    check_family,
    grouping,
    open_sources,
    read_collections,
    read_example_set,
)


def load_study(path: Path | str) -> Study:
    """Read a study file and resolve it.

    Raises:
        StudyFileError: with all problems of the file, its sources and its collections together.
    """
    return resolve(parse_study(Path(path)))


def resolve(parsed: ParsedStudy, *, searched: bool = True) -> Study:
    """Find, open and compare everything the study file names; no weights are read.

    Args:
        parsed: the study file.
        searched: there has to be something to search; else the space may be a single point.

    Raises:
        StudyFileError: with all problems of the file, its sources and its collections together.
    """
    content, merge = parsed.content, parsed.content.merge
    checks = Checks(parsed)
    check_names(parsed, checks)
    folders, checkpoints = open_sources(parsed, checks)
    if isinstance(checkpoints.get(merge.template), AdaptedCheckpoint):
        message = (
            f"{merge.template!r} is a PEFT adapter and no whole model: take its base as the template, or merge the two "
            "with peft (`model.merge_and_unload().save_pretrained(...)`) and give that folder"
        )
        checks.add(message, "merge", "template")
    layout = groups = space = shared = family = None
    reranks = content.evaluation.rerank is not None
    if merge.template in folders:
        folder = folders[merge.template]
        if content.evaluation.rerank is not None:
            with checks.at("evaluation", "rerank"):
                family = detect_family(folder, content.evaluation.rerank.family)
                check_family(parsed, family, checks)
        else:
            check_encoding(parsed, folder, checks)
        if family is not None or not reranks:
            with checks.at("sources", merge.template):
                head = None if family is None else family.head
                layout = read_layout(folder, head=head, trust_remote_code=merge.template in content.trusted)
    if layout is not None and not checks.found_at("merge", "groups"):
        with checks.at("merge", "groups"):
            groups = make_groups(grouping(parsed), layout)
    if groups is None:
        check_coefficients(parsed, checks, searched=searched)
    elif merge.method in METHODS:
        with checks.below("merge", "coefficients"):
            space = search_space(parsed, {g.name: g.depth for g in groups if g.merged}, searched=searched)
    if layout is not None and groups is not None and len(checkpoints) == len(content.sources):
        merged_places = frozenset(p for g in groups if g.merged for p in g.places)
        with checks.at("sources"):
            check_sources(
                checkpoints,
                template=merge.template,
                layout=layout,
                merged_places=dict.fromkeys(checkpoints, merged_places),
                other_vocabulary=merge.other_vocabulary,
                trust_remote_code=content.trusted,
            )
            if merge.other_vocabulary == "shared_tokens" and EMBEDDINGS in merged_places:
                shared = share_tokens(checkpoints, template=merge.template, layout=layout)
    collections = read_collections(parsed, checks)
    examples = None
    if not checks.found_at("merge", "examples"):
        with checks.at("merge", "examples"):
            examples = read_example_set(parsed)
    if layout is None or groups is None or space is None:
        checks.raise_if_any()
        raise AssertionError("a study that cannot be resolved has a problem")
    method = METHODS[merge.method]
    study = Study(parsed, folders, checkpoints, layout, shared, method, groups, space, collections, examples)
    study = replace(study, family=None if family is None else family.name)
    if not checks.found_at("search", "strategy"):
        with checks.at("search", "strategy"):
            study.strategy()
    if content.artifacts is not None and study.artifacts is not None:
        with checks.at("artifacts"):
            check_location(study.artifacts)
    _check_enqueued(study, checks)
    _check_language_models(study, checks)
    checks.raise_if_any()
    return replace(study, measured=given_measurements(parsed))


def _check_enqueued(study: Study, checks: Checks) -> None:
    """Points have to lie in the space, and coefficients that a point gives have to build a merge."""
    for i, entry in enumerate(study.parsed.content.search.enqueue):
        with checks.at("search", "enqueue", i):
            if isinstance(entry, dict):
                study.space.coefficients(entry)


def _check_language_models(study: Study, checks: Checks) -> None:
    """Losses per token can be compared between models that have a head and share a vocabulary."""
    if study.examples is None or not study.examples.completions:
        return
    template = study.folders[study.parsed.content.merge.template]
    for source in study.sources_to_measure:
        if source in study.adapters:
            found = "an adapter, which has no language-model head of its own"
        elif not same_vocabulary(template, study.folders[source]):
            found = "a model with another vocabulary, whose losses per token are of other tokens"
        else:
            continue
        checks.add(f"`loss: language_model` cannot judge {found}: give all losses as numbers", "sources", source)
