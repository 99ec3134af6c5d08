"""Fusion of a first stage's scores with a re-ranker's, against ranx."""

from __future__ import annotations

import numpy as np
import pytest
import ranx
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.evaluation.fusion import SHARES, fuse, normalise, order


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two untied tables of scores over the same candidates; lists of one document among them."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    present = np.arange(max(lengths)) < np.array(lengths)[:, None]
    scale = draw(st.sampled_from([1e-3, 1.0, 1e4]))
    first, second = (
        scale * random.permuted(np.cumsum(random.uniform(0.1, 1, present.shape), 1), axis=1) for _ in range(2)
    )
    return first, second - scale, present


@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaTypeSafetyWarning")  # ranx, as it is compiled
@given(tables(), st.sampled_from(SHARES))
def test_equals_ranx(given_tables: tuple[np.ndarray, np.ndarray, np.ndarray], share: float) -> None:
    first, second, present = given_tables
    runs = [
        ranx.Run(
            {f"q{q}": {f"d{k}": float(table[q, k]) for k in np.flatnonzero(present[q])} for q in range(len(table))}
        )
        for table in (first, second)
    ]
    theirs = ranx.fuse(runs, norm="min-max", method="wsum", params={"weights": (1 - share, share)}).to_dict()
    ours = fuse(first, second, present, np.array([share]))[0]
    assert ours.shape == present.shape
    assert not ours[~present].any()
    for query, expected in theirs.items():
        row = int(query[1:])
        for document, score in expected.items():
            assert ours[row, int(document[1:])] == pytest.approx(score, abs=1e-9)


def test_one_document_or_equal_scores_come_to_nothing_and_absent_ones_do_not_count() -> None:
    present = np.array([[True, False], [True, True], [False, False]])
    scores = np.array([[5.0, -9.0], [2.0, 2.0], [1.0, 2.0]])
    assert not normalise(scores, present).any()
    three = np.array([[3.0, 1.0, 2.0]])
    assert normalise(three, np.array([[True, False, True]])).tolist() == [[1.0, 0.0, 0.0]]
    without = fuse(None, three, np.ones((1, 3), bool), np.array([0.0, 0.5]))
    assert without.tolist() == [[[1.0, 0.0, 0.5]]] * 2, "without first scores every share is the re-ranker's"


def test_ties_go_by_id_descending_and_absent_candidates_last() -> None:
    places = np.array([[4, -1, 7, 2], [-1, -1, -1, -1]])
    columns = order(np.array([[0.5, 9.0, 0.5, 0.7], [0.0, 0.0, 0.0, 0.0]]), places)
    assert columns[0].tolist() == [3, 2, 0, 1]
    assert sorted(columns[1].tolist()) == [0, 1, 2, 3]
