"""Studies side by side: what is tested, what is refused to be compared, and the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mergesearch import evaluate_study, load_study, open_store, run_study
from mergesearch.evaluation.significance import compare
from mergesearch.results.comparing import compare_studies
from mergesearch.results.view import StudyView, read_view
from mergesearch.storage.store import StudyStore
from tests.report_pages import check_alone, check_contrast, check_keyboard, check_structure, check_width
from tests.tiny_studies import TinyStudy, copy_study, mergesearch

if TYPE_CHECKING:
    from tests.browser import OfflinePage

pytest_plugins = ["tests.browser"]


def finish(study: TinyStudy) -> None:
    resolved = load_study(study.file)
    with open_store(resolved) as store:
        run_study(resolved, store)
        evaluate_study(resolved, store)


@pytest.fixture(scope="module")
def pair(grid_study: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyStudy, TinyStudy]:
    """The grid, and a study of another method over the same sources and queries; both read on the test split."""
    folder = tmp_path_factory.mktemp("pair")
    first = copy_study(grid_study, folder / "first")
    second = copy_study(grid_study, folder / "second").change("study", to="other")
    second.change("merge", "method", to="slerp").change("merge", "coefficients", to={"t": {"values": [0.25, 0.4]}})
    second.change("search", "enqueue", to=[])
    for study in (first, second):
        finish(study)
    return first, second


@pytest.fixture(scope="module")
def views(pair: tuple[TinyStudy, TinyStudy]) -> list[StudyView]:
    return [view_of(study) for study in pair]


def view_of(study: TinyStudy) -> StudyView:
    resolved = load_study(study.file)
    with StudyStore.open(study.storage, resolved.name, None, exclusive=False) as store:
        return read_view(resolved, store)


def test_test_readings_are_compared_query_by_query(views: list[StudyView]) -> None:
    found = compare_studies(views)
    assert [c.name for c in found.columns] == ["tiny", "other"]
    assert [c.method for c in found.columns] == ["linear", "slerp"]
    assert found.notes == ()
    (test,) = found.pairs
    a, b = (c.tests[0].scores for c in found.columns)
    assert test.comparison == compare(a.scores, b.scores)
    assert test.p_holm == test.comparison.p_ttest
    assert (test.split, test.collection) == ("test", "made")


def test_p_values_are_corrected_over_all_pairs(views: list[StudyView]) -> None:
    first, second = views
    found = compare_studies([first, second, first])
    assert [c.name for c in found.columns] == ["tiny (1)", "other", "tiny (2)"]
    compared = [p for p in found.pairs if p.comparison is not None]
    assert len(found.pairs) == 3
    assert len(compared) == 2  # the study against itself is not tested
    for p in compared:
        assert p.comparison is not None
        assert p.p_holm == pytest.approx(min(1.0, 2 * p.comparison.p_ttest))


def with_readings(view: StudyView, **changed: Any) -> StudyView:
    """The study as if its test readings had been others."""
    return replace(view, readings=tuple(replace(r, scores=replace(r.scores, **changed)) for r in view.readings))


def test_what_does_not_share_queries_is_not_compared(views: list[StudyView]) -> None:
    first, second = views
    elsewhere = tuple(f"q{i}" for i in range(8))
    for changed, why in (
        ({"query_ids": elsewhere}, "the queries are not the same (8 and 8, 0 in common)"),
        ({"metric": "mrr@10"}, "scored by ndcg@10 and by mrr@10"),
        ({"collection": "another"}, "no test split of a common collection"),
    ):
        found = compare_studies([first, with_readings(second, **changed)])
        assert found.pairs == ()
        assert any(why in note for note in found.notes), found.notes
    recorded = json.loads(json.dumps(second.record.score_relevant))
    recorded["evaluation"]["collections"]["made"]["content"] = "other texts"
    moved = replace(second, record=replace(second.record, score_relevant=recorded))
    assert any("dev scores do not compare: texts" in note for note in compare_studies([first, moved]).notes)


def test_dev_scores_are_never_tested(grid_study: TinyStudy) -> None:
    view = view_of(grid_study)
    found = compare_studies([view, view])
    assert found.pairs == ()
    assert any("no test split" in note for note in found.notes)


def test_the_command_prints_tables_json_and_a_page(
    pair: tuple[TinyStudy, TinyStudy], offline_page: OfflinePage, tmp_path: Path
) -> None:
    out = tmp_path / "compare.html"
    said = mergesearch("compare", pair[0].file, pair[1].file, "--out", out)
    assert said.code == 0
    assert "dev scores are selection scores" in said.out
    assert "tiny − other" in said.out
    with offline_page(width=360, dark=True) as opened:
        opened.goto(out.as_uri())
        check_alone(opened)
        check_structure(opened)
        check_contrast(opened)
        check_width(opened)
        check_keyboard(opened)
    assert mergesearch("compare", pair[0].file).code == 2


def test_a_comparison_is_plain_json(views: list[StudyView]) -> None:
    answer = json.loads(json.dumps(compare_studies(views).to_dict()))
    assert [s["study"] for s in answer["studies"]] == ["tiny", "other"]
    assert [s["test"][0]["queries"] for s in answer["studies"]] == [8, 8]
    assert answer["pairs"][0]["p_holm"] == answer["pairs"][0]["p_ttest"]
