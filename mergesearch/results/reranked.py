"""Scores of re-rankers on other queries than those that their share in the sum was tuned on.

λ, the re-ranker's share, is part of what was chosen on the dev split: other splits take it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.evaluator_spec import CollectionSpec, EvaluatorSpec

FIRST_STAGE = "first stage alone"
"""What the first stage is called among models."""

Shares = Mapping[str, float]


def tunes(study: Study) -> bool:
    """Whether λ is tuned: in studies that re-rank, do not fix it, and have scores to sum with."""
    entry = study.parsed.content.evaluation.rerank
    scored = any(spec.first_stage.kind != "candidates" for spec in study.collection_specs())
    return entry is not None and entry.fusion == "tuned" and scored


def open_tuned(
    study: Study, store: StudyStore, recipes: Mapping[str, MergeRecipe], spec: EvaluatorSpec
) -> tuple[TrialEvaluator, Shares]:
    """An evaluator of `spec`, and by label the λ that each model was, or is now, tuned to on the dev split.

    Models that no trial scored, such as whole sources whose embeddings the study does not merge, are scored on the dev
    split first.

    Args:
        study: its dev split decides.
        store: what its trials were tuned to.
        recipes: by label.
        spec: the collections that are to be scored.

    Returns:
        The evaluator, and no λ where none is tuned.
    """
    if not tunes(study):
        return TrialEvaluator(spec), {}
    shares = known_shares(study, store, recipes)
    lacking = {label: recipe for label, recipe in recipes.items() if label not in shares}
    if not lacking:
        return TrialEvaluator(spec), shares
    evaluator = TrialEvaluator(replace(spec, collections=study.collection_specs()))
    for label, recipe in lacking.items():
        shares[label] = share_of(evaluator.evaluate(recipe))
    evaluator.adapt(spec)
    return evaluator, shares


def known_shares(study: Study, store: StudyStore, recipes: Mapping[str, MergeRecipe]) -> dict[str, float]:
    """By label the λ of models that trials have scored, as far as there are any.

    A source alone is the anchor of its name where all that it has is merged: other words for the same weights.
    """
    merged = {place for g in study.groups if g.merged for place in g.places}
    same = {
        study.source_alone(source).fingerprint: study.recipe_of(coefficients).fingerprint
        for source, coefficients in study.sources_alone().items()
        if source == study.parsed.content.merge.template or study.own_places(source) <= merged
    }
    shares = {}
    for label, recipe in recipes.items():
        known = store.value_of(recipe.fingerprint) or store.value_of(same.get(recipe.fingerprint, ""))
        if known is not None and known[1].fusion is not None:
            shares[label] = known[1].fusion
    return shares


def share_of(result: TrialResult) -> float:
    """The λ of a result; 1, the re-ranker alone, where there was nothing to fuse with."""
    return 1.0 if result.fusion is None else result.fusion


def told(shares: Shares) -> list[str]:
    """A note on what λ was tuned to."""
    found = ", ".join(f"{label} {share:g}" for label, share in shares.items())
    return [f"the re-ranker's share in the sum with the first stage, tuned on dev: {found}"] if found else []


def first_stages_of(study: Study) -> dict[str, object]:
    """What a re-ranker's scores were summed with, per collection, as plain JSON types and without paths."""
    specs = study.collection_specs()
    found = {
        c.name: {"kind": spec.first_stage.kind, "depth": spec.first_stage.depth}
        for c, spec in zip(study.collections, specs, strict=True)
    }
    return {"first_stage": found}


def first_stages(specs: tuple[CollectionSpec, ...]) -> str:
    """What the row of the first stage is called; empty where one of them only lists candidates, without scores."""
    kinds = dict.fromkeys(c.first_stage.kind for c in specs)
    return "" if "candidates" in kinds else f"{FIRST_STAGE} ({', '.join(kinds)})"
