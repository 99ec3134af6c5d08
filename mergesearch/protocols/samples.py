"""A few of a study's dev queries, drawn again and again: what is chosen on them, and the study that has no others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import Choice, choose
from mergesearch.results.distance import Distances
from mergesearch.storage.reader import StudyReader
from mergesearch.study import Study
from mergesearch.study_file import ParsedStudy, parse_study_text
from mergesearch.yaml_problems import plain

HIGHEST, ADVISED = "highest", "advised"
RULES = (HIGHEST, ADVISED)
"""How a merge is chosen: the highest dev score of all that are no source alone, which is CIKM'25's rule; or as `best`
does it, which keeps a source where no merge gains more than luck."""
Samples = dict[str, Collection]
"""Dev queries by collection."""


def seed_of(parsed: ParsedStudy, number: int) -> int:
    """What draws sample `number`, from 1 on; the study's own dev queries were drawn with the study's seed."""
    return parsed.content.seed + number


def sample(study: Study, queries: int, number: int) -> Samples:
    """So many dev queries of every collection, on the pool of all; all of them for number 0."""
    if number == 0:
        return {c.name: c for c in study.collections}
    return {c.name: c.sample_queries(queries, seed_of(study.parsed, number)) for c in study.collections}


def sampled_study(study: Study, queries: int, number: int) -> Study:
    """The study that has no other dev queries than a sample.

    Its name says which; everything else, what the strategy draws included, is as in the study.
    """
    parsed = study.parsed
    content = plain(parsed.tree)
    content["study"] += f".{queries}-queries.{number}"
    for collection in content["evaluation"]["collections"]:
        collection["subsample"] = {"queries": queries, "seed": seed_of(parsed, number)}
    sampled = parse_study_text(json.dumps(content, indent=2), parsed.path)  # JSON is YAML
    return replace(study, parsed=sampled, collections=tuple(sample(study, queries, number).values()))


def chosen(study: Study, store: StudyReader, rule: str, on: Samples | None = None) -> Choice:
    """The merge that a rule chooses among recorded trials, by their scores on some of the dev queries.

    Args:
        study: the resolved study.
        store: its records.
        rule: one of `RULES`.
        on: the queries; None for all.

    Raises:
        NothingScoredError: no trial has a score yet, or with `highest` none that is no source alone.
    """
    scored = store.scored()
    if rule == HIGHEST:
        distances = Distances(study)
        scored = {n: trial for n, trial in scored.items() if distances.nearest(trial[0])[0] > 0}
    return choose(study, store, scored if on is None else _on_queries(scored, on))


def _on_queries(
    scored: Mapping[int, tuple[MergeRecipe, TrialResult]], on: Samples
) -> dict[int, tuple[MergeRecipe, TrialResult]]:
    kept = {name: frozenset(collection.query_ids) for name, collection in on.items()}
    found = {}
    for number, (recipe, result) in scored.items():
        collections = []
        for c in result.collections:
            rows = [i for i, query in enumerate(c.query_ids) if query in kept[c.collection]]
            ids = tuple(c.query_ids[i] for i in rows)
            collections.append(replace(c, query_ids=ids, scores=c.scores[rows], looks=None))
        found[number] = (recipe, replace(result, collections=tuple(collections)))
    return found
