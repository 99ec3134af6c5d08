"""Whole studies of tiny re-rankers: searched, resumed, evaluated, exported, and made again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from mergesearch import choose, export_merge, load_study, open_store, run_study
from mergesearch.errors import ResumeError, StudyFileError
from mergesearch.evaluation.fusion import SHARES
from mergesearch.results.evaluate import evaluate_folder, evaluate_study
from mergesearch.results.remake import merge_recipe
from mergesearch.results.reranked import FIRST_STAGE, known_shares
from mergesearch.workers.evaluator import TrialEvaluator
from tests.tiny_models import make_tiny
from tests.tiny_studies import TinyStudy, copy_study, make_beir, make_rerank_study, mergesearch

KINDS = ("bert", "t5", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("roberta", "llama")))


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    tiny = make_rerank_study(tmp_path_factory.mktemp(request.param), kind=request.param)
    run(tiny)
    return tiny


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """One that was not run."""
    return make_rerank_study(tmp_path_factory.mktemp("bert"))


def run(tiny: TinyStudy) -> list[Any]:
    study = load_study(tiny.file)
    with open_store(study) as store:
        run_study(study, store)
        return store.trials()


def test_every_trial_is_scored_with_the_best_share_for_it(finished: TinyStudy) -> None:
    study = load_study(finished.file)
    with open_store(study) as store:
        trials = [t for t in store.trials() if t.state.name == "COMPLETE"]
        assert len(trials) >= 4
        for trial in trials:
            result = store.result(trial.number)
            assert result is not None
            assert result.fusion in SHARES
            assert trial.user_attrs["fusion"] == result.fusion
        evaluator = TrialEvaluator(study.evaluator_spec())
        recipe = store.recipe(trials[0].number)
        values = [evaluator.evaluate(recipe, fusion=share).value for share in SHARES]
        assert trials[0].value == pytest.approx(max(values), abs=1e-9)
        first = evaluator.pipeline.first_stage().value  # type: ignore[union-attr]
        assert first == pytest.approx(values[0], abs=1e-9)
        assert min(t.value for t in trials) >= first - 1e-9


def test_the_test_split_is_scored_with_the_share_of_dev(finished: TinyStudy) -> None:
    study = load_study(finished.file)
    with open_store(study) as store:
        choice = choose(study, store)
        recorded = store.result(choice.number)
        assert recorded is not None
        found = evaluate_study(study, store, split="test")
        assert found.models[0].label == f"{FIRST_STAGE} (bm25)"
        chosen = found.models[-1]
        assert chosen.result.fusion == recorded.fusion
        spec = study.evaluator_spec()
        evaluator = TrialEvaluator(spec.__class__(**{**vars(spec), "collections": study.collection_specs(test=True)}))
        again = evaluator.evaluate(store.recipe(choice.number), fusion=recorded.fusion)
        np.testing.assert_allclose(again.collections[0].scores, chosen.result.collections[0].scores)
        assert any("tuned on dev" in note for note in found.notes)
        assert f"{FIRST_STAGE} (bm25)" in {t.against for t in found.tests}


def test_sources_that_are_merged_whole_are_not_scored_on_dev_again(finished: TinyStudy) -> None:
    study = load_study(finished.file)
    with open_store(study) as store:
        recipes = {source: study.source_alone(source) for source in study.folders}
        found = known_shares(study, store, recipes)
        by_anchor = {t.user_attrs["anchor"]: t.user_attrs["fusion"] for t in store.trials() if "anchor" in t.user_attrs}
        assert found.keys() == recipes.keys()
        assert found["reranker"] == by_anchor["reranker alone"]


def test_an_export_loads_scores_the_same_and_is_made_again(finished: TinyStudy, tmp_path: Path) -> None:
    study = load_study(finished.file)
    with open_store(study) as store:
        exported = export_merge(study, store, tmp_path / "out")
    assert exported.rescored == pytest.approx(exported.recorded, abs=5e-4)
    seq2seq = (tmp_path / "out" / "config.json").read_text().find("ForConditionalGeneration") >= 0
    loads = AutoModelForSeq2SeqLM if seq2seq else AutoModelForSequenceClassification
    model = loads.from_pretrained(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) > 1000
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "A re-ranker merged from" in card
    assert "bm25's first 6 documents" in card
    moved = {name: str(folder) for name, folder in study.folders.items()}
    remade = merge_recipe(tmp_path / "out" / "mergesearch.json", tmp_path / "again", sources=moved)
    assert remade.same
    told = json.loads((tmp_path / "again" / "mergesearch.json").read_text())
    assert told["reranking"]["family"] == study.family
    found = evaluate_folder(tmp_path / "out", study=study, split="dev")
    assert found.models[0].result.value == pytest.approx(exported.recorded, abs=5e-4)


def test_a_study_that_is_run_again_evaluates_nothing_and_refuses_another_first_stage(
    finished: TinyStudy, tmp_path: Path
) -> None:
    again = copy_study(finished, tmp_path)
    before = len(run(again))
    assert len(run(again)) == before
    again.change("evaluation", "rerank", "first_stage", "depth", to=5)
    study = load_study(again.file)
    with pytest.raises(ResumeError, match="first_stage"), open_store(study):
        pass


def test_commands_say_what_is_re_ranked(bert: TinyStudy, tmp_path: Path) -> None:
    tiny = copy_study(bert, tmp_path)
    planned = mergesearch("plan", tiny.file)
    assert planned.code == 0, planned.err
    ran = mergesearch("run", tiny.file)
    assert ran.code == 0, ran.err
    best = mergesearch("best", tiny.file)
    assert "λ" in best.out
    assert mergesearch("report", tiny.file, "--out", tmp_path / "report.html").code == 0
    assert mergesearch("status", tiny.file).code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((("evaluation", "rerank", "family"), "cross_encodr"), "Did you mean 'cross_encoder'"),
        ((("evaluation", "rerank", "first_stage"), {"kind": "bm52"}), "Did you mean 'bm25'"),
        ((("evaluation", "rerank", "first_stage"), {"kind": "bm25", "k2": 1.0}), "unknown key 'k2'"),
        ((("evaluation", "pooling"), "mean"), "read by bi-encoders"),
        ((("evaluation", "prompts"), {"query": "q: "}), "re-ranker's template"),
        ((("evaluation", "rerank", "query_template"), "query:"), r"lacks \{query\}"),
        ((("evaluation", "rerank", "fusion"), 1.5), "fusion"),
        ((("evaluation", "rerank", "template"), "{query} {document}"), "does not read `template`"),
        ((("merge", "template"), "base"), "re-rank"),
        ((("evaluation", "rerank"), None), "pooled"),
    ],
)
def test_problems_are_found_before_any_weight_is_read(
    bert: TinyStudy, tmp_path: Path, change: tuple[tuple[str, ...], Any], message: str
) -> None:
    tiny = copy_study(bert, tmp_path)
    path, value = change
    tiny.change(*path, to=value)
    with pytest.raises(StudyFileError, match=message):
        load_study(tiny.file)


def test_a_first_stage_without_re_ranking_is_a_problem(tmp_path: Path) -> None:
    tiny = make_rerank_study(tmp_path)
    make_tiny("bert", tmp_path / "retriever")
    tiny.change("evaluation", "rerank", to=None)
    tiny.change("evaluation", "collections", 0, "first_stage", to="bm25")
    with pytest.raises(StudyFileError, match="candidates are for re-rankers"):
        load_study(tiny.file)


def test_the_surrogate_interpolates_logits(bert: TinyStudy, tmp_path: Path) -> None:
    tiny = copy_study(bert, tmp_path)
    tiny.change("merge", "coefficients", "weight", "domain", to={"low": 0, "high": 1, "step": 0.05})
    tiny.change("search", "strategy", to="embedding_surrogate").change("search", "trials", to=8)
    tiny.change("search", "enqueue", to=["sources"])
    trials = run(tiny)
    assert sum(t.state.name == "COMPLETE" for t in trials) >= 4
    predicted = [t for t in trials if "predicted" in " ".join(t.user_attrs)]
    assert predicted


def test_trials_are_raced_by_queries(bert: TinyStudy, tmp_path: Path) -> None:
    tiny = copy_study(bert, tmp_path)
    make_beir(tmp_path / "more", n_queries=40)
    tiny.change("evaluation", "collections", 0, "folder", to="more")
    tiny.change("merge", "coefficients", "weight", "domain", to={"low": 0, "high": 3, "step": 0.1})
    tiny.change("search", to={"strategy": "random", "trials": 14, "racing": {"looks": [0.5]}})
    trials = run(tiny)
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    assert complete
    assert all(len(t.user_attrs["looks"]) == 2 for t in complete if "looks" in t.user_attrs)
    assert any("looks" in t.user_attrs for t in complete)


def test_hidden_states_are_reused_to_the_bit(tmp_path: Path) -> None:
    tiny = make_rerank_study(tmp_path, n_layers=4)
    tiny.change("merge", "groups", "segments", to=2).change("merge", "groups", "embeddings", to="template")
    tiny.change("search", "enqueue", to=[])
    values = [t.value for t in run(tiny)]
    tiny.change("workers", "prefix_cache", to="off").change("study", to="plain")
    assert values == [t.value for t in run(tiny)]
