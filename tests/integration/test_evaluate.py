"""Final tables of whole tiny studies: who is scored, on what, by which numbers, and what is recorded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import pytrec_eval
from rich.console import Console
from rich.table import Table

from mergesearch import choose, evaluate_folder, evaluate_study, export_merge, load_study, open_store, run_study
from mergesearch.errors import CollectionError, EvaluationError
from mergesearch.listener import Listener
from mergesearch.results.choose import NothingScoredError
from mergesearch.results.evaluate import Evaluation
from mergesearch.results.export import RECIPE_FILE
from tests.tiny_studies import TinyStudy, make_beir, make_study

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
        "collection", "against", "difference", "interval", "p_ttest", "p_permutation", "p_holm", "queries",
    }  # fmt: skip
