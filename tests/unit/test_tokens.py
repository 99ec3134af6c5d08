"""The token plan: fixed, within its budget, and hardly any padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.evaluation.tokens import TokenizedTexts, make_plan, plan_batches

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def tokenized(lengths: Sequence[int]) -> TokenizedTexts:
    """Text i is i repeated, so that rows can be recognised."""
    texts = [np.full(length, number, dtype=np.int32) for number, length in enumerate(lengths)]
    return TokenizedTexts(np.concatenate(texts), np.array(lengths, dtype=np.int64))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(64, 512))
def test_batches_hold_every_text_once_within_budget_and_nearly_unpadded(lengths: list[int], budget: int) -> None:
    counts = np.array(lengths)
    batches = plan_batches(counts, budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * counts[batch].max()
        assert padded <= budget or len(batch) == 1
        assert counts[batch].sum() >= 0.95 * padded


def test_longest_texts_come_first_and_equal_lengths_keep_their_order() -> None:
    batches = plan_batches(np.array([3, 7, 3, 7, 7]), 14)
    assert [list(batch) for batch in batches] == [[1, 3], [4], [0, 2]]


def test_counts_useful_and_padded_tokens() -> None:
    plan = make_plan([tokenized([20, 19, 5])], batch_tokens=40)
    assert [list(batch) for batch in plan.batches] == [[0, 1], [2]]
    assert (plan.n_texts, plan.n_tokens, plan.n_padded_tokens) == (3, 44, 45)
    assert plan.useful == pytest.approx(44 / 45)


@pytest.mark.parametrize(("left", "expected"), [(False, [[0, 0, 9], [2, 2, 2]]), (True, [[9, 0, 0], [2, 2, 2]])])
def test_pads_on_the_tokenizers_side(left: bool, expected: list[list[int]]) -> None:
    plan = make_plan([tokenized([2, 1, 3])])
    ids, mask = plan.padded(np.array([0, 2]), pad_id=9, left=left)
    assert ids.tolist() == expected
    assert mask.tolist() == [[int(token != 9) for token in row] for row in expected]


@pytest.mark.parametrize("most", [1, 2, 5, 100])
def test_chunks_are_consecutive_and_complete(most: int) -> None:
    plan = make_plan([tokenized([5] * 7 + [9] * 4)], batch_tokens=18)
    chunks = list(plan.chunks(most))
    assert [number for chunk in chunks for number in chunk] == list(range(len(plan.batches)))
    for chunk in chunks:
        assert sum(len(plan.batches[number]) for number in chunk) <= most or len(chunk) == 1


def test_a_mapped_plan_equals_one_in_memory_and_leaves_no_file(tmp_path: Path) -> None:
    pieces = [tokenized([4, 2]), tokenized([7])]
    mapped = make_plan(iter(pieces), store=tmp_path)
    assert isinstance(mapped.ids, np.memmap)
    assert mapped.fingerprint == make_plan(iter(pieces)).fingerprint
    assert mapped.padded(np.array([2]), pad_id=0, left=False)[0].tolist() == [[0] * 7]
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_tells_tokens_batches_and_prompts_apart() -> None:
    pieces = [tokenized([4, 2, 4])]
    plans = [
        make_plan(pieces),
        make_plan(pieces, batch_tokens=4),
        make_plan(pieces, prompt_length=2),
        make_plan([tokenized([4, 4, 2])]),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert make_plan(pieces).fingerprint == plans[0].fingerprint


def test_an_empty_plan_has_no_batches(tmp_path: Path) -> None:
    for store in (None, tmp_path):
        plan = make_plan([], store=store)
        assert (plan.n_texts, plan.n_tokens, plan.batches, plan.useful) == (0, 0, (), 1.0)
        assert list(plan.chunks(10)) == []
