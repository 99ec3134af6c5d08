"""Screenings on a worker that re-ranks: logits kept of trials, read again or scored again, and what is predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mergesearch.artifacts import Artifacts
from mergesearch.evaluation.candidates import find_candidates
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.pipeline import WeightedCollection
from mergesearch.evaluation.rerank_settings import FirstStageSpec, RerankSettings
from mergesearch.evaluation.reranker import open_reranker
from mergesearch.evaluation.reranking import RerankEvaluator
from mergesearch.merging.resident import ResidentMerger
from mergesearch.recipe import MergeRecipe
from mergesearch.sources.layout import HEAD, read_layout
from mergesearch.surrogate.objective import Objective
from mergesearch.surrogate.screening import Screening
from mergesearch.workers.pool import EvaluatedMerge, ScreeningTask
from mergesearch.workers.screening import Screener
from tests.conformance.merging import make_recipe
from tests.tiny_models import WORDS, tiny_reranker

POINTS = ((0.0,), (0.5,), (1.0,))


def make_collection(name: str, seed: int, n_queries: int) -> Collection:
    random = np.random.default_rng(seed)
    doc_ids = [f"d{i}" for i in random.permutation(40)]
    queries = [f"q{i}" for i in range(n_queries)]
    return Collection(
        name,
        "dev",
        queries,
        [" ".join(random.choice(WORDS, 3)) for _ in queries],
        doc_ids,
        [" ".join(random.choice(WORDS, random.integers(2, 20))) for _ in doc_ids],
        {q: {doc_ids[d]: 1 for d in random.choice(40, 6, replace=False)} for q in queries},
    )


@pytest.fixture(scope="module")
def merger_and_pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[ResidentMerger, RerankEvaluator]:
    folder = tmp_path_factory.mktemp("models")
    folders = {name: tiny_reranker("bert", folder / name, seed=i, n_layers=2) for i, name in enumerate(("one", "two"))}
    opened = {name: open_reranker(path, RerankSettings()) for name, path in folders.items()}
    sources = {n: {k: p.detach().clone() for k, p in r.parameters.items()} for n, r in opened.items()}
    layout = read_layout(folders["one"], head="sequence_classification")
    places = {name: parameter.place for name, parameter in layout.parameters.items()}
    merger = ResidentMerger(opened["one"].parameters, sources, places)
    collections = [make_collection("made", 0, 10), make_collection("other", 1, 6)]
    pipeline = RerankEvaluator(
        opened["one"],
        [WeightedCollection(c, weight) for c, weight in zip(collections, (1.0, 2.0), strict=True)],
        [find_candidates(FirstStageSpec(depth=12), c) for c in collections],
    )
    return merger, pipeline


def recipe_at(merger: ResidentMerger, point: tuple[float, ...]) -> MergeRecipe:
    """From `one` at 0 to `two` at 1, but for the head."""
    places = tuple(sorted(set(merger.places) - {HEAD}))
    weights = {"weight": {"one": 1 - point[0], "two": point[0]}}
    return make_recipe("linear", ["one", "two"], {places: weights, (HEAD,): "one"})


def test_predictions_from_logits_that_were_kept_lost_or_never_kept(
    merger_and_pipeline: tuple[ResidentMerger, RerankEvaluator], tmp_path: Path
) -> None:
    merger, pipeline = merger_and_pipeline
    here = Screener(merger, pipeline, Artifacts(tmp_path / "kept"))
    merges, shares = {}, set()
    for point in POINTS:
        recipe = recipe_at(merger, point)
        merger.apply(recipe)
        keeper = pipeline.new_keeper()
        result = pipeline.evaluate(keeper=keeper)
        shares.add(result.fusion)
        scores = np.concatenate([c.scores for c in result.collections])
        merges[f"m{point[0]}"] = EvaluatedMerge(recipe, here.save(recipe, keeper.result()), scores)
    assert len(shares) > 1
    screening = Screening(
        keys=tuple(merges), points=POINTS, metric="ndcg@10", objective=Objective("mean"), n_candidates=64
    )
    held = here.answer(ScreeningTask(-1, screening, merges, {}))
    assert held.tokens == 0
    assert not held.restored
    assert held.report.replay_error < 1e-15  # what is computed from logits is what was measured, the share included
    read = Screener(merger, pipeline, Artifacts(tmp_path / "kept")).answer(ScreeningTask(-1, screening, merges, {}))
    assert read == held
    lost = {**merges, "m0.5": EvaluatedMerge(merges["m0.5"].recipe, "", merges["m0.5"].scores)}
    again = Screener(merger, pipeline, Artifacts(tmp_path / "kept")).answer(ScreeningTask(-1, screening, lost, {}))
    assert again.report == held.report
    assert again.tokens == pipeline.n_tokens
    assert dict(again.restored) == {"m0.5": merges["m0.5"].embeddings}
    elsewhere = Screener(merger, pipeline, Artifacts(tmp_path / "empty")).answer(
        ScreeningTask(-1, screening, merges, {})
    )
    assert elsewhere.report == held.report
    assert elsewhere.tokens == 3 * pipeline.n_tokens
