"""The tables of the limited-data comparison, of scores that are written out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mergesearch.protocols.limited_data import LimitedData, Outcome, Picked
from mergesearch.protocols.limited_tables import differences, notes, tables

DRAW = np.random.default_rng(5)
ALONE = DRAW.random(30)
MERGE = ALONE + DRAW.normal(0.05, 0.1, 30)
LORA_RQ = ALONE + DRAW.normal(0, 0.1, (4, 30))
OUTCOME = Outcome(
    LimitedData(queries=10, repeats=3),
    template="retriever",
    metric="ndcg@10",
    dev_queries={"health": 40},
    picked=(Picked("LoRA", 0, "1 pass", 0.5), Picked("grid", 0, "trial 1", 0.5)),
    scores={"health": {"retriever alone": np.stack([ALONE] * 4), "LoRA": LORA_RQ, "grid": np.stack([MERGE] * 4)}},
    read=6,
)


def test_samples_that_all_chose_the_same_merge_say_nothing_of_other_samples() -> None:
    """Equal differences have no spread: t is infinite, and a p-value of 0 from three samples would be nonsense."""
    found = {(d.model, d.against): d.p_samples for d in differences(OUTCOME) if d.few}
    assert found["grid", "retriever alone"] is None
    means = LORA_RQ[1:].mean(axis=1)
    assert found["LoRA", "retriever alone"] == pytest.approx(stats.ttest_1samp(means - ALONE.mean(), 0).pvalue)
    assert found["grid", "LoRA"] == pytest.approx(stats.ttest_1samp(MERGE.mean() - means, 0).pvalue)


def test_test_scores_on_pseudo_queries_are_labelled() -> None:
    assert "pseudo" not in str([*tables(OUTCOME), *notes(OUTCOME)])
    labelled = replace(OUTCOME, pseudo=("health",))
    assert tables(labelled)[0][0] == "health: ndcg@10 on 30 test pseudo-queries"
    assert any("health" in note and "pseudo-queries" in note for note in notes(labelled))
    assert labelled.to_dict()["pseudo_queries"] == ["health"]
