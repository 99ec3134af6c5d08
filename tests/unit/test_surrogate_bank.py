"""Predicted scores are those of ranking predicted embeddings, whatever is done to be fast."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.metrics import MEASURES
from mergesearch.surrogate.bank import CollectionBank, EmbeddingBank
from mergesearch.surrogate.kriging import Kriging, fit_lengths
from tests.surrogate_toys import ToyMerges, plain_scores

Array = NDArray[np.float64]

POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.7, 0.9], [0.4, 0.3]])
CANDIDATES = np.random.default_rng(4).random((25, 2))


def names(n: int) -> list[str]:
    return [f"m{i}" for i in range(n)]


def everything(*collections: CollectionBank) -> EmbeddingBank:
    """A bank without shortcuts."""
    return EmbeddingBank(names(len(collections[0].queries)), collections, shortlist=10_000, lost_energy=0.0)


def plain(bank: CollectionBank, weights: Array, metric: str) -> Array:
    """Weighted sums of embeddings, renormalised, searched and scored one by one, in float64."""
    rows = []
    for candidate in torch.from_numpy(weights):
        queries, documents = (torch.einsum("n,nte->te", candidate, t.double()) for t in (bank.queries, bank.documents))
        if bank.normalize:
            documents = torch.nn.functional.normalize(documents, dim=1)
        rows.append(plain_scores(queries, documents, bank.judgements, metric))
    return np.array(rows)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("measure", sorted(MEASURES))
@pytest.mark.parametrize("weights", ["kriging", "any"])
def test_scores_are_those_of_the_plain_computation(measure: str, normalize: bool, weights: str) -> None:
    bank = ToyMerges(normalize=normalize).bank(POINTS)
    chosen = Kriging(POINTS, 1.0).weights(CANDIDATES)
    if weights == "any":
        chosen = np.random.default_rng(1).normal(size=chosen.shape)
    for depth in (1, 10):
        metric = f"{measure}@{depth}"
        np.testing.assert_allclose(
            everything(bank).per_query_scores(chosen, metric), plain(bank, chosen, metric), atol=1e-12
        )


def test_cosine_and_inner_product_rank_differently() -> None:
    toy = ToyMerges(normalize=False)
    bank = toy.bank(POINTS)
    cosine = CollectionBank(bank.queries, bank.documents, bank.judgements, normalize=True)
    weights = Kriging(POINTS, 1.0).weights(CANDIDATES)
    both = [everything(b).per_query_scores(weights, "ndcg@10") for b in (bank, cosine)]
    assert np.abs(both[0] - both[1]).max() > 0.1


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([torch.float16, torch.float32]), st.booleans())
def test_evaluated_merges_get_their_measured_scores(seed: int, dtype: torch.dtype, normalize: bool) -> None:
    toy = ToyMerges(seed=seed, normalize=normalize)
    bank = EmbeddingBank(names(5), [toy.bank(POINTS, dtype)])
    scores = bank.per_query_scores(np.eye(5), "ndcg@10")
    off = np.abs(scores - toy.measure(POINTS))
    # Half precision may swap two documents that are as good as equal.
    assert (off > 1e-9).mean() <= (0.05 if dtype == torch.float16 else 0.0)


def test_the_usual_shortcuts_hardly_change_scores() -> None:
    toy = ToyMerges(n_queries=40, n_documents=400, size=64)
    points = np.random.default_rng(2).random((10, 2))
    bank = toy.bank(points, torch.float16)
    usual = EmbeddingBank(names(10), [bank])
    weights = Kriging(points, fit_lengths(points, usual.gram()).lengths).weights(CANDIDATES)
    assert max(map(len, bank.shortlists(30))) < 200
    full = everything(bank).per_query_scores(weights, "ndcg@10")
    short = usual.per_query_scores(weights, "ndcg@10")
    rounding = everything(toy.bank(points)).per_query_scores(weights, "ndcg@10") - full
    assert (np.abs(short - full) > 1e-9).mean() < max(0.02, 1.5 * (np.abs(rounding) > 1e-9).mean())
    assert np.abs((short - full).mean(axis=1)).mean() < 0.001


def test_predictions_of_unseen_merges_are_close_to_the_truth() -> None:
    toy = ToyMerges(n_queries=40, n_documents=200)
    points = np.random.default_rng(5).random((15, 2))
    bank = EmbeddingBank(names(15), [toy.bank(points)])
    predicted = bank.per_query_scores(Kriging(points, 1.0).weights(CANDIDATES), "ndcg@10").mean(axis=1)
    true = toy.measure(CANDIDATES).mean(axis=1)
    assert np.corrcoef(predicted, true)[0, 1] > 0.99
    assert np.abs(predicted - true).mean() < 0.1 * true.std()


def test_excluded_documents_and_candidate_lists_are_kept_to() -> None:
    toy = ToyMerges()
    bank = toy.bank(POINTS)
    random = np.random.default_rng(0)
    listed = [np.sort(random.choice(60, size=7, replace=False)) for _ in range(12)]
    listed[3] = np.array([], dtype=np.int64)
    excluded = np.array([rows[0] if len(rows) else -1 for rows in listed])
    weights = Kriging(POINTS, 1.0).weights(CANDIDATES)
    limited = CollectionBank(bank.queries, bank.documents, bank.judgements, exclude=excluded, candidates=listed)
    scores = everything(limited).per_query_scores(weights, "ndcg@10")
    for query, rows in enumerate(listed):
        kept = rows[rows != excluded[query]]
        alone = Judgements.prepare(
            ["q"],
            [str(r) for r in kept],
            # Documents that may not be ranked still count as relevant: they are missed.
            {"q": {str(r): 1 + r % 2 for r in range(query, 60, 12)}},
        )
        small = CollectionBank(bank.queries[:, [query]], bank.documents[:, kept], alone)
        np.testing.assert_allclose(scores[:, query], plain(small, weights, "ndcg@10")[:, 0], atol=1e-12)


def test_documents_may_be_a_part_of_the_corpus() -> None:
    toy = ToyMerges()
    bank = toy.bank(POINTS)
    kept = np.arange(0, 60, 2)
    part = CollectionBank(bank.queries, bank.documents[:, kept], bank.judgements, document_rows=kept)
    listed = CollectionBank(bank.queries, bank.documents, bank.judgements, candidates=[kept] * 12)
    weights = Kriging(POINTS, 1.0).weights(CANDIDATES)
    np.testing.assert_array_equal(
        everything(part).per_query_scores(weights, "map@20"), everything(listed).per_query_scores(weights, "map@20")
    )


def test_equal_documents_do_not_share_a_rank() -> None:
    judgements = Judgements.prepare(["q"], ["a", "b"], {"q": {"a": 1, "b": 1}})
    bank = CollectionBank(torch.ones(1, 1, 4), torch.ones(1, 2, 4), judgements)
    assert EmbeddingBank(["m"], [bank]).per_query_scores(np.ones((1, 1)), "map@10") == 1.0


def test_collections_stand_side_by_side_and_weigh_as_asked() -> None:
    toys = [ToyMerges(seed=1), ToyMerges(seed=2, n_queries=5)]
    banks = [t.bank(POINTS, weight=w) for t, w in zip(toys, (1.0, 3.0), strict=True)]
    weights = Kriging(POINTS, 1.0).weights(CANDIDATES)
    both = everything(*banks)
    assert both.sizes == (12, 5)
    assert both.shares == (1.0, 3.0)
    alone = [everything(b) for b in banks]
    np.testing.assert_array_equal(
        both.per_query_scores(weights, "ndcg@10"),
        np.hstack([a.per_query_scores(weights, "ndcg@10") for a in alone]),
    )
    np.testing.assert_allclose(both.gram(), 0.25 * alone[0].gram() + 0.75 * alone[1].gram(), atol=1e-12)


def test_gram_measures_squared_distances_per_text() -> None:
    bank = ToyMerges().bank(POINTS)
    gram = everything(bank).gram()
    for i in range(5):
        for j in range(5):
            apart = [(t[i] - t[j]).square().sum(dim=1).mean() for t in (bank.queries, bank.documents)]
            assert gram[i, i] + gram[j, j] - 2 * gram[i, j] == pytest.approx(float(sum(apart)) / 2, abs=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    bank = ToyMerges().bank(POINTS)
    with pytest.raises(EvaluationError, match="5"):
        EmbeddingBank(names(4), [bank])
    with pytest.raises(EvaluationError, match="Q = 12"):
        CollectionBank(bank.queries[:, :3], bank.documents, bank.judgements)
    broken = bank.documents.clone()
    broken[1, 2, 3] = torch.nan
    with pytest.raises(EvaluationError, match="NaN"):
        EmbeddingBank(names(5), [CollectionBank(bank.queries, broken, bank.judgements)])
