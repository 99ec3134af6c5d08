"""Final tables of whole tiny studies: who is scored, on what, by which numbers, and what is recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import pytrec_eval
from rich.console import Console
from rich.table import Table

from mergesearch import choose, evaluate_folder, evaluate_study, export_merge, load_study, open_store, run_study
from mergesearch.errors import CollectionError, EvaluationError, SourceError
from mergesearch.evaluation.significance import Comparison, compare
from mergesearch.listener import Listener
from mergesearch.results.choose import NothingScoredError
from mergesearch.results.evaluate import Evaluation
from mergesearch.results.export import RECIPE_FILE
from mergesearch.results.tested import PairedTest, Reported
from tests.tiny_models import make_tiny, make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_beir, make_study, mergesearch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mergesearch.storage.store import StudyStore
    from mergesearch.study import Study


class Silent(Listener):
    """A listener that nobody listens to."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    """Two collections: one of more documents than the study's metric looks at, and a lighter one."""
    made = make_study(tmp_path_factory.mktemp("study"))
    made.change("search", "strategy", to={"name": "grid"}).change("search", "trials", to=None)
    make_beir(made.folder / "other", seed=5, n_queries=6, n_documents=150)
    collections = [{"name": "made", "folder": "collection"}, {"name": "other", "folder": "other", "weight": 0.5}]
    return made.change("evaluation", "collections", to=collections)


@pytest.fixture(scope="module")
def finished(tiny: TinyStudy) -> Iterator[tuple[Study, StudyStore]]:
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Silent())
        yield study, store


@pytest.fixture(scope="module")
def evaluation(finished: tuple[Study, StudyStore]) -> Evaluation:
    steps: list[tuple[int, int]] = []
    found = evaluate_study(*finished, progress=lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert len({total for _, total in steps}) == 1
    assert steps[-1][0] == steps[-1][1]
    return found


def test_sources_average_highest_and_chosen_are_scored(
    evaluation: Evaluation, finished: tuple[Study, StudyStore]
) -> None:
    choice = choose(*finished)
    labels = ["retriever alone", "domain alone", "uniform average"]
    if choice.best_number != choice.number:
        labels.append(f"highest on dev (trial {choice.best_number})")
    assert [m.label for m in evaluation.models] == [*labels, f"chosen (trial {choice.number})"]


def test_a_source_alone_is_the_whole_source(
    evaluation: Evaluation, tiny: TinyStudy, finished: tuple[Study, StudyStore]
) -> None:
    for name in ("retriever", "domain"):
        by_folder = evaluate_folder(tiny.folder / name, study=finished[0])
        model = next(m for m in evaluation.models if m.label == f"{name} alone")
        assert by_folder.models[0].means == model.means
        assert by_folder.models[0].label == name
        for mine, theirs in zip(by_folder.models[0].result.collections, model.result.collections, strict=True):
            np.testing.assert_array_equal(mine.scores, theirs.scores)


def test_metrics_are_those_of_trec_eval(evaluation: Evaluation, finished: tuple[Study, StudyStore]) -> None:
    names = {"ndcg@10": "ndcg_cut_10", "recall@100": "recall_100", "map@100": "map_cut_100"}
    for spec in finished[0].collection_specs(test=True):
        judge = pytrec_eval.RelevanceEvaluator(spec.load().qrels, set(names.values()))
        for model in evaluation.models:
            scores = next(c for c in model.result.collections if c.collection == spec.name)
            assert scores.run is not None
            per_query = judge.evaluate({q: dict(documents) for q, documents in scores.run.items()})
            for ours, theirs in names.items():
                mean = np.mean([q[theirs] for q in per_query.values()])
                assert model.means[spec.name][ours] == pytest.approx(mean, abs=1e-9)
            assert model.means[spec.name]["ndcg@10"] == pytest.approx(scores.mean, abs=1e-9)


def test_recall_at_100_looks_at_100_documents(evaluation: Evaluation) -> None:
    for model in evaluation.models:
        runs = {c.collection: c.run for c in model.result.collections}
        assert {len(r) for r in runs["other"].values()} == {100}  # type: ignore[union-attr]
        assert {len(r) for r in runs["made"].values()} == {30}  # type: ignore[union-attr]
        assert model.means["made"]["recall@100"] == 1


def test_differences_are_paired_and_corrected_within_a_collection(evaluation: Evaluation) -> None:
    winner = evaluation.models[-1]
    for name in ("made", "other"):
        tests = [t for t in evaluation.tests if t.collection == name]
        assert len(tests) >= 2
        for t in tests:
            other = next(m for m in evaluation.models if m.label == t.against)
            mine, theirs = (
                next(c.scores for c in m.result.collections if c.collection == name) for m in (winner, other)
            )
            assert t.comparison.mean_difference == pytest.approx(float((mine - theirs).mean()))
            assert t.comparison.n == len(mine)
            low, high = t.comparison.interval
            assert low <= t.comparison.mean_difference <= high
            assert t.p_holm >= t.comparison.p_ttest
        # Holm's smallest p-value is Bonferroni's.
        smallest = min(tests, key=lambda t: t.comparison.p_ttest)
        assert smallest.p_holm == pytest.approx(min(1.0, len(tests) * smallest.comparison.p_ttest))


def test_models_of_equal_weights_are_said_to_be_so_and_not_tested(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=1).change("search", "enqueue", to=["uniform"])
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Silent())
        found = evaluate_study(study, store)
    assert "the chosen merge has the same weights as: uniform average" in found.notes
    assert {t.against for t in found.tests} == {"retriever alone", "domain alone"}
    assert found.models[-1].result is found.models[-2].result


def test_every_reading_of_the_test_split_is_recorded_and_counted(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=3)
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Silent())
        first = evaluate_study(study, store)
        readings = store.test_readings()
        assert [r.subject for r in readings] == [m.label for m in first.models]
        assert {(r.split, r.command) for r in readings} == {("test", "evaluate")}
        for reading, model in zip(readings, first.models, strict=True):
            np.testing.assert_array_equal(reading.scores.scores, model.result.collections[0].scores)
        assert readings[-1].fingerprint == store.recipe(choose(study, store).number).fingerprint
        assert not [n for n in first.notes if "has now been read" in n]

        assert not evaluate_study(study, store, split="dev").tests
        evaluate_folder(tmp_path / "domain", study=study, store=store, split="dev")
        assert len(store.test_readings()) == len(readings)

        evaluate_folder(tmp_path / "domain", study=study, store=store)
        assert [(r.subject, r.command) for r in store.test_readings()[len(readings) :]] == [
            ("domain", "evaluate folder")
        ]
        last = evaluate_study(study, store)
        assert [n for n in last.notes if "has now been read 3 times" in n]

        # An export tells the chosen merge's own test score, once.
        found = export_merge(study, store, tmp_path / "merged")
        (told,) = json.loads((found.folder / RECIPE_FILE).read_text(encoding="utf-8"))["test"]
        assert told["score"] == last.models[-1].result.value
        assert (
            f"| test | made | this merge | ndcg@10 | {told['score']:.4f} | 8 |"
            in (found.folder / "README.md").read_text()
        )


def test_dev_scores_are_the_recorded_ones_and_called_selection_scores(finished: tuple[Study, StudyStore]) -> None:
    study, store = finished
    found = evaluate_study(study, store, split="dev")
    choice = choose(study, store)
    assert found.models[-1].result.value == pytest.approx(choice.value, abs=1e-9)
    assert "selection scores" in found.notes[0]
    assert all(title.endswith("queries (selection scores)") for title, _, _ in found.tables())
    assert found.tests == ()


def test_splits_go_by_the_study_files_names(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=1)
    qrels = tmp_path / "collection" / "qrels"
    (qrels / "dev.tsv").rename(qrels / "tuning.tsv")
    (qrels / "test.tsv").rename(qrels / "final.tsv")
    entry = {"name": "made", "folder": "collection", "split": "tuning", "test_split": "final"}
    study = load_study(tiny.change("evaluation", "collections", to=[entry]).file)
    folder = tmp_path / "domain"
    dev, test, named = (evaluate_folder(folder, study=study, split=s) for s in ("dev", "test", "tuning"))
    assert dev.models[0].means == named.models[0].means
    assert dev.models[0].result.collections[0].query_ids[0].startswith("dev")
    assert test.models[0].result.collections[0].query_ids[0].startswith("test")
    with pytest.raises(CollectionError, match="nowhere"):
        evaluate_folder(folder, study=study, split="nowhere")
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Silent())
        assert all(
            m.result.collections[0].query_ids[0].startswith("dev")
            for m in evaluate_study(study, store, split="tuning").models
        )
        # What was searched on is no test, whatever the split is called.
        evaluate_study(study, store)
        found = export_merge(study, store, tmp_path / "merged")
        (told,) = json.loads((found.folder / RECIPE_FILE).read_text(encoding="utf-8"))["test"]
        assert told["split"] == "test"


def test_test_queries_that_were_searched_on_are_pointed_out(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=1)
    entry = {"name": "made", "folder": "collection", "split": "dev", "test_split": "dev"}
    study = load_study(tiny.change("evaluation", "collections", to=[entry]).file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Silent())
        notes = evaluate_study(study, store).notes
        assert [n for n in notes if "8 of 8 test queries of made are dev queries, too: they were searched on" in n]


def test_test_queries_may_rank_a_pool_which_is_said(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=1)
    tiny.change("evaluation", "collections", 0, "pool", to={"negatives": 3, "test_negatives": 0})
    study = load_study(tiny.file)
    (spec,) = study.collection_specs(test=True)
    test = spec.load()
    assert set(test.doc_ids) == {doc for judged in test.qrels.values() for doc in judged}
    assert len(test.doc_ids) < 30
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Silent())
        notes = evaluate_study(study, store).notes
    assert [n for n in notes if f"queries of made rank a pool of {len(test.doc_ids)} documents" in n]
    tiny.change("evaluation", "collections", 0, "pool", to={"negatives": 0})
    assert len(load_study(tiny.file).collection_specs(test=True)[0].load().doc_ids) == 30


def test_a_folder_is_scored_on_any_beir_folder(tiny: TinyStudy) -> None:
    found = evaluate_folder(tiny.folder / "retriever", beir=tiny.folder / "other")
    (title, headers, rows), *rest = found.tables()
    assert (title, rest) == ("other, test split, 6 queries", [])
    assert headers == ["model", "ndcg@10", "recall@100", "mrr@10", "map@100"]
    assert rows[0][0] == "retriever"


def test_what_cannot_be_evaluated_is_an_error(
    tiny: TinyStudy, finished: tuple[Study, StudyStore], tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match="a study or a collection folder"):
        evaluate_folder(tiny.folder / "retriever")
    with pytest.raises(CollectionError, match="there is no split 'train'; splits there are: dev, test"):
        evaluate_study(*finished, split="train")
    other = make_study(tmp_path)
    study = load_study(other.file)
    with open_store(study, other.storage) as store, pytest.raises(NothingScoredError, match="no scored trial yet"):
        evaluate_study(study, store)


def test_a_single_query_is_scored_and_not_tested(tmp_path: Path) -> None:
    tiny = make_study(tmp_path).change("search", "trials", to=2)
    file = tmp_path / "collection" / "qrels" / "test.tsv"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    study = load_study(tiny.file)
    with open_store(study, tiny.storage) as store:
        run_study(study, store, Silent())
        found = evaluate_study(study, store)
    assert found.tests == ()
    assert len(found.tables()) == 1


def test_tables_fit_100_columns_and_json_is_plain(evaluation: Evaluation) -> None:
    for title, headers, rows in evaluation.tables():
        table = Table(title=title, box=None, pad_edge=False)
        for header in headers:
            table.add_column(header, no_wrap=True)
        for row in rows:
            table.add_row(*(cell.replace("trial 3", "trial 12345") for cell in row))
        console = Console(width=300, record=True, quiet=True)
        assert console.measure(table).maximum <= 100
    plain = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert plain["models"][0]["model"] == "retriever alone"
    assert set(plain["tests"][0]) == {
        "collection", "metric", "against", "difference", "interval", "p_ttest", "p_permutation", "p_holm",
        "p_bonferroni", "level", "queries",
    }  # fmt: skip


def test_other_metrics_are_those_of_trec_eval_and_tested_by_query(finished: tuple[Study, StudyStore]) -> None:
    names = {"precision@10": "P_10", "ndcg@3": "ndcg_cut_3", "map@100": "map_cut_100"}
    reported = Reported((*names, "precision@10"), "bonferroni", 0.99)
    found = evaluate_study(*finished, reported=reported)
    assert [list(t[1][1:]) for t in found.tables() if t[1][0] == "model"] == [list(names)] * 2
    winner, other = found.models[-1], next(m for m in found.models if m.label == found.tests[0].against)
    for i, spec in enumerate(finished[0].collection_specs(test=True)):
        judge = pytrec_eval.RelevanceEvaluator(spec.load().qrels, set(names.values()))
        for metric, theirs in names.items():
            expected = {}
            for model in (winner, other):
                run = model.on(i, metric).run
                assert run is not None
                per_query = judge.evaluate({q: dict(documents) for q, documents in run.items()})
                expected[model.label] = np.array([per_query[q][theirs] for q in model.on(i, metric).query_ids])
                np.testing.assert_allclose(model.on(i, metric).scores, expected[model.label], atol=1e-9)
            tests = [t for t in found.tests if (t.collection, t.metric) == (spec.name, metric)]
            (test,) = [t for t in tests if t.against == other.label]
            assert test.comparison == compare(winner.on(i, metric).scores, other.on(i, metric).scores, level=0.99)
            difference = float((expected[winner.label] - expected[other.label]).mean())
            assert test.comparison.mean_difference == pytest.approx(difference, abs=1e-9)
            assert test.p_bonferroni == pytest.approx(min(1, len(tests) * test.comparison.p_ttest))
            assert test.p_bonferroni >= test.p_holm
    headers = [t[1][1:] for t in found.tables() if t[1][0] != "model"]
    assert headers[0] == ["precision@10", "99% interval", "p (t)", "p (perm.)", "p (t, Bonferroni)"]


@pytest.mark.parametrize(
    ("correction", "level", "stars"),
    [("holm", 0.95, 2), ("bonferroni", 0.95, 1), ("holm", 0.999, 0), ("holm", None, 0)],
)
def test_stars_are_for_corrected_p_values_at_the_level_asked_for(
    evaluation: Evaluation, correction: Any, level: float | None, stars: int
) -> None:
    tests = [
        PairedTest("made", label, Comparison(0.1, (0.0, 0.2), p, p, 9, level or 0.95), holm, "ndcg@10", 2)
        for label, p, holm in (("a", 0.01, 0.02), ("b", 0.03, 0.03))
    ]
    shown = replace(evaluation, tests=tuple(tests), reported=Reported((), correction, level)).tables()
    (differences,) = [rows for title, _, rows in shown if title == "made, differences"]
    assert sum(row[-1].endswith("*") for row in differences) == stars


def test_trials_and_rivals_that_are_named_are_scored_and_tested_too(tiny: TinyStudy, tmp_path: Path) -> None:
    made = copy_study(tiny, tmp_path / "study")
    made.change("search", "enqueue", to=[{"alpha.segment_1": 0.5, "alpha.segment_2": 0}])
    made.change("search", to={**made.content()["search"], "strategy": "random", "trials": 3})
    make_variant(made.folder / "retriever", tmp_path / "better", seed=9)
    study = load_study(made.file)
    with open_store(study, made.storage) as store:
        run_study(study, store, Silent())
        number = next(n for n in (0, 1) if n != choose(study, store).number)
        found = evaluate_study(study, store, trials=[number], rivals={"all-data": str(tmp_path / "better")})
        readings = store.test_readings()
    labels = [m.label for m in found.models]
    assert labels[2:5] == ["uniform average", "all-data (rival)", f"trial {number}"]
    assert {r.subject for r in readings} == set(labels)
    assert {t.against for t in found.tests} >= {"all-data (rival)", f"trial {number}"}
    rival = next(m for m in found.models if m.label.endswith("(rival)"))
    assert rival.means == evaluate_folder(tmp_path / "better", study=study).models[0].means
    with open_store(study, made.storage) as store:
        export_merge(study, store, tmp_path / "merged")
        with pytest.raises(SourceError, match="a source is called 'domain': give the rival another name"):
            evaluate_study(study, store, rivals={"domain": str(tmp_path / "better")})
        make_tiny("bert", tmp_path / "larger", n_layers=3)
        with pytest.raises(SourceError, match=r"mergesearch evaluate \S*larger --on study\.yaml"):
            evaluate_study(study, store, rivals={"larger": str(tmp_path / "larger")})
        with pytest.raises(EvaluationError, match="no trial 99 has a score; those that have: 0, 1, 2"):
            evaluate_study(study, store, trials=[99])


@pytest.mark.parametrize("wrong", [{"metrics": ("ndcg",)}, {"metrics": ("gain@10",)}, {"level": 1.0}, {"level": 99.0}])
def test_metrics_and_levels_that_are_none_are_refused_before_anything_is_encoded(wrong: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError):
        Reported(**wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study.yaml", "--rival", "folder"), "--rival is NAME=MODEL"),
        (("retriever", "--on", "study.yaml", "--level", "0.99"), "belong to a study"),
        (("retriever", "--mteb", "NFCorpus", "--out", "out", "--metrics", "ndcg@3"), "mteb's own"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(
    tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tiny.folder)
    answer = mergesearch("evaluate", *arguments)
    assert answer.code == 2
    assert message in answer.err
