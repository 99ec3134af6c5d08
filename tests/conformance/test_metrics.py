"""What every measure must do; adding one to the registry adds it here, and to the comparison with trec_eval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import MEASURES, Metric, parse_metric

DOCS = [f"d{i}" for i in range(12)]

grades = st.dictionaries(st.sampled_from(DOCS), st.integers(-1, 3), min_size=1, max_size=12)
rankings = st.lists(st.sampled_from(range(12)), unique=True, min_size=1, max_size=12)


@pytest.fixture(params=sorted(MEASURES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def score(metric: Metric, rows: list[int], qrels: dict[str, int]) -> float:
    judgements = Judgements.prepare(["q"], DOCS, {"q": qrels})
    return float(metric.score(judgements.gains(np.array([rows])), judgements)[0])


def best_first(qrels: dict[str, int]) -> list[int]:
    return sorted(range(12), key=lambda d: -qrels.get(DOCS[d], 0))


@given(qrels=grades, rows=rankings, depth=st.integers(1, 12))
@pytest.mark.parametrize("name", sorted(MEASURES))
def test_lies_between_zero_and_the_best_ranking(name: str, qrels: dict[str, int], rows: list[int], depth: int) -> None:
    metric = Metric(name, depth)
    assert 0.0 <= score(metric, rows, qrels) <= score(metric, best_first(qrels), qrels) + 1e-12 <= 1.0 + 1e-12


@given(qrels=grades, rows=rankings, depth=st.integers(1, 6))
@pytest.mark.parametrize("name", sorted(MEASURES))
def test_looks_no_deeper_than_its_depth(name: str, qrels: dict[str, int], rows: list[int], depth: int) -> None:
    assert score(Metric(name, depth), rows, qrels) == score(Metric(name, depth), rows[:depth], qrels)


@given(qrels=grades, rows=st.permutations(range(12)), depth=st.integers(1, 12), place=st.integers(0, 10))
@pytest.mark.parametrize("name", sorted(MEASURES))
def test_never_falls_when_a_better_document_moves_up(
    name: str, qrels: dict[str, int], rows: list[int], depth: int, place: int
) -> None:
    upper, lower = rows[place], rows[place + 1]
    if qrels.get(DOCS[lower], 0) < qrels.get(DOCS[upper], 0):
        upper, lower = lower, upper
    swapped = [*rows[:place], lower, upper, *rows[place + 2 :]]
    other = [*rows[:place], upper, lower, *rows[place + 2 :]]
    metric = Metric(name, depth)
    assert score(metric, swapped, qrels) >= score(metric, other, qrels) - 1e-12


def test_nothing_relevant_and_nothing_found_score_zero(name: str) -> None:
    metric = Metric(name, 5)
    assert score(metric, [0, 1], {"d0": 0, "d1": -1}) == 0.0
    assert score(metric, [-1, -1], {"d0": 2}) == 0.0
    assert score(metric, [3, 4], {"d0": 2}) == 0.0


def test_queries_do_not_see_each_other(name: str) -> None:
    qrels = {"q1": {"d0": 2, "d3": 1}, "q2": {"d5": 1}, "q3": {"d11": 3, "missing": 1}}
    rows = np.array([[3, 1, 0], [0, 1, 5], [11, 2, 3]])
    together = Judgements.prepare(list(qrels), DOCS, qrels)
    metric = parse_metric(f"{name}@3")
    alone = [score(metric, list(row), qrels[q]) for q, row in zip(qrels, rows, strict=True)]
    assert metric.score(together.gains(rows), together).tolist() == pytest.approx(alone, abs=1e-15)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # Ranked gains 0, 2, 1; ideal gains 3, 2, 1 (the grade-3 document is not found).
        ("ndcg@3", (2 / np.log2(3) + 1 / 2) / (3 + 2 / np.log2(3) + 1 / 2)),
        ("precision@3", 2 / 3),
        ("precision@10", 2 / 10),
        ("recall@3", 2 / 3),
        ("map@3", (1 / 2 + 2 / 3) / 3),
        ("mrr@3", 1 / 2),
        ("mrr@1", 0.0),
    ],
)
def test_written_out_examples(metric: str, expected: float) -> None:
    assert score(parse_metric(metric), [9, 1, 2], {"d0": 3, "d1": 2, "d2": 1}) == pytest.approx(expected)


def test_names_are_read_and_written_alike(name: str) -> None:
    metric = parse_metric(f" {name.upper()}@25 ")
    assert (metric.name, metric.depth) == (f"{name}@25", 25)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ndgc@10", "Did you mean 'ndcg'"),
        ("ndcg", "measure@depth"),
        ("ndcg@0", "measure@depth"),
        ("@10", "measure@depth"),
    ],
)
def test_bad_names_say_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        parse_metric(name)
