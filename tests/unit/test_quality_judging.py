"""What the quality protocol says of scores: verdicts, calibration, explanations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mergesearch.evaluation.result import CollectionScores
from mergesearch.evaluation.significance import holm
from mergesearch.protocols.quality.calibrating import calibrate
from mergesearch.protocols.quality.explaining import correlation, vocabulary_shift
from mergesearch.protocols.quality.judging import Row, best_source, judge
from mergesearch.protocols.quality.table import markdown, tables
from mergesearch.results.choose import Candidate

DRAW = np.random.default_rng(3)
QUERIES = 60
BASE = DRAW.random(QUERIES)


def row(name: str, *seeds: np.ndarray[Any, np.dtype[np.float64]]) -> Row:
    return Row(name, np.stack(seeds), ())


def judged() -> dict[str, dict[str, Any]]:
    better = BASE + 0.1 + DRAW.normal(0, 0.05, QUERIES)
    rows = [
        row("retriever alone", BASE),
        row("pairs alone", BASE - 0.1 + DRAW.normal(0, 0.05, QUERIES)),
        row("kept", BASE),
        row("grid", better),
        row("TPE", better + 0.02, better - 0.02),
    ]
    return {r["row"]: r for r in judge(rows, 0.05)}


def test_verdicts_say_better_worse_and_same() -> None:
    found = {name: r["against"]["retriever"]["verdict"] for name, r in judged().items()}
    assert found == {
        "retriever alone": "same",
        "pairs alone": "worse",
        "kept": "same",
        "grid": "better",
        "TPE": "better",
    }


def test_seeds_are_compared_by_their_mean_and_spread_is_over_seeds() -> None:
    rows = judged()
    assert rows["TPE"]["against"]["retriever"]["difference"] == pytest.approx(
        rows["grid"]["against"]["retriever"]["difference"]
    )
    assert rows["TPE"]["sd"] == pytest.approx(0.04 / np.sqrt(2))
    assert rows["grid"]["sd"] is None


def test_the_same_source_chosen_by_every_seed_is_the_same_and_is_not_tested() -> None:
    """A mean of three equal numbers is not always that number: .1 + .1 + .1 is no .3."""
    source = np.repeat([0.1, 0.6309297535714575, 0.7], 20)
    rows = [row("retriever alone", source), row("pairs alone", source / 2), row("TPE", source, source, source)]
    tpe = judge(rows, 0.05)[2]
    assert [a["verdict"] for a in tpe["against"].values()] == ["same", "same"]
    assert tpe["sd"] == pytest.approx(0, abs=1e-12)


def test_p_values_are_corrected_over_all_comparisons_of_a_collection() -> None:
    rows = [
        row("retriever alone", BASE),
        row("pairs alone", BASE + DRAW.normal(0.02, 0.1, QUERIES)),
        row("grid", BASE + DRAW.normal(0.01, 0.1, QUERIES)),
    ]
    best = best_source(rows)
    others = [(a, b) for a in rows for b in rows[:1] if a is not b] + [(rows[2], rows[1])]
    assert best.name == "pairs alone"
    expected = holm([float(stats.ttest_rel(a.mean, b.mean).pvalue) for a, b in others])
    told = {r["row"]: r["against"] for r in judge(rows, 0.05)}
    assert told["pairs alone"]["retriever"]["p_holm"] == pytest.approx(expected[0])
    assert told["retriever alone"]["best source"]["p_holm"] == pytest.approx(expected[0])  # the same comparison
    assert told["grid"]["retriever"]["p_holm"] == pytest.approx(expected[1])
    assert told["grid"]["best source"]["p_holm"] == pytest.approx(expected[2])


def merges(effects: list[float], noise: float, seed: int = 0) -> list[Candidate]:
    """The first and last are sources alone."""
    draw = np.random.default_rng(seed)
    found = []
    for i, effect in enumerate(effects):
        scores = BASE + effect + draw.normal(0, noise, QUERIES)
        alone = i in (0, len(effects) - 1)
        kept = (CollectionScores("made", "ndcg@10", tuple(map(str, range(QUERIES))), scores),)
        found.append(Candidate(i, "", float(scores.mean()), kept, 0.0 if alone else 0.5, f"s{i}", str(i)))
    return found


def test_the_interval_of_a_gain_on_other_queries_holds_what_it_says() -> None:
    found = [calibrate(merges([0, 0.03, -0.05], 0.1, s), splits=60, level=0.9, seed=s) for s in range(8)]
    covered = np.mean([f["covered"] for f in found])
    narrow = np.mean([f["covered_narrow"] for f in found])
    assert 0.83 < covered < 0.97
    assert narrow < covered  # the sample that the gain is measured on has noise of its own


def test_a_clear_gain_is_advised_and_carries_over() -> None:
    found = calibrate(merges([0, 0.2, -0.2], 0.05), splits=20, level=0.9, seed=0)
    assert found["merge_advised"] == 1.0
    assert found["followed"] == pytest.approx(0.2, abs=0.03)
    assert found["kept_rightly"] is None


def test_the_same_words_are_no_shift_and_others_are_one_bit() -> None:
    a, b = Counter({1: 3, 2: 1}), Counter({1: 30, 2: 10})
    assert vocabulary_shift({"a": a, "b": b}, "a") == pytest.approx(0.0, abs=1e-12)
    assert vocabulary_shift({"a": a, "b": Counter({7: 2})}, "a") == pytest.approx(1.0)


def test_a_model_that_never_varies_has_no_correlation() -> None:
    assert correlation([1.0, 0.0], [0.0, 1.0]) == pytest.approx(-1.0)
    assert correlation([0.5, 0.5], [0.0, 1.0]) is None


def test_tables_of_nothing_are_nothing() -> None:
    assert markdown(tables({"collections": {}, "seconds": {}})) == ""
