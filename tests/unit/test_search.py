"""Streaming search against a plain reading of the definition: sort all pairs by (score, id) descending."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.search import Ranking, TopK, order_by_id


def random_embeddings(n: int, seed: int, *, integers: bool) -> torch.Tensor:
    """Small integers give exact products and so many true ties; normal numbers give none."""
    generator = torch.Generator().manual_seed(seed)
    if integers:
        return torch.randint(-2, 3, (n, 6), generator=generator).float()
    return torch.nn.functional.normalize(torch.randn(n, 48, generator=generator), dim=1)


def doc_ids(n: int) -> list[str]:
    """Ids whose order is neither numeric nor that of the rows; some are not ASCII."""
    ids = [f"{'dDé文'[i % 4]}{i}" for i in range(n)]
    return [ids[i] for i in np.random.default_rng(1).permutation(n)]


def sorted_pairs(queries: torch.Tensor, documents: torch.Tensor, ids: list[str]) -> list[list[int]]:
    scores = (queries.double() @ documents.double().T).float().numpy()
    return [sorted(range(len(ids)), key=lambda d: (row[d], ids[d].encode()), reverse=True) for row in scores]


def rank(
    queries: torch.Tensor, documents: torch.Tensor, ids: list[str], depth: int, chunk: int, **options: object
) -> Ranking:
    search = TopK(queries, ids, depth, **options)  # type: ignore[arg-type]
    order = np.random.default_rng(chunk).permutation(len(ids))
    for start in range(0, len(ids), chunk):
        rows = order[start : start + chunk]
        search.add(rows, documents[torch.from_numpy(rows)])
    return search.result()


@pytest.mark.parametrize("integers", [True, False])
def test_every_chunk_size_gives_the_same_ranking(integers: bool) -> None:
    queries = random_embeddings(7, 0, integers=integers)
    documents = random_embeddings(40, 1, integers=integers)
    ids = doc_ids(40)
    expected = [row[:10] for row in sorted_pairs(queries, documents, ids)]
    whole = rank(queries, documents, ids, 10, 40)
    assert whole.rows.tolist() == expected
    for chunk in range(1, 41):
        ranking = rank(queries, documents, ids, 10, chunk)
        assert ranking.rows.tolist() == expected
        assert np.array_equal(ranking.scores, whole.scores)


def test_equal_documents_tie_however_far_apart_they_are() -> None:
    queries = random_embeddings(3, 0, integers=False)
    documents = random_embeddings(50, 1, integers=False)
    documents[[3, 20, 49]] = documents[7].clone()
    ids = doc_ids(50)
    for chunk in (1, 7, 50):
        ranking = rank(queries, documents, ids, 50, chunk)
        assert ranking.rows.tolist() == sorted_pairs(queries, documents, ids)
        for rows, scores in zip(ranking.rows, ranking.scores, strict=True):
            assert len({scores[list(rows).index(d)] for d in (3, 7, 20, 49)}) == 1


def test_a_collapsed_model_ranks_by_id_alone() -> None:
    queries, documents = torch.ones(2, 4), torch.ones(300, 4)
    ids = doc_ids(300)
    ranking = rank(queries, documents, ids, 5, 300)
    expected = sorted(ids, key=str.encode, reverse=True)[:5]
    assert [[ids[d] for d in row] for row in ranking.rows] == [expected, expected]
    given = rank(queries, documents, ids, 5, 300, by_id=order_by_id(ids))
    assert np.array_equal(given.rows, ranking.rows)


def test_fewer_documents_than_asked_for() -> None:
    ranking = rank(torch.ones(1, 2), torch.tensor([[1.0, 0], [2, 0]]), ["a", "b"], 4, 2)
    assert ranking.rows.tolist() == [[1, 0, -1, -1]]
    assert ranking.scores.tolist() == [[2, 1, -np.inf, -np.inf]]
    assert ranking.to_run(["q"], ["a", "b"]) == {"q": (("b", 2.0), ("a", 1.0))}


@pytest.mark.parametrize("chunk", [1, 9, 40])
def test_a_querys_own_document_is_left_out(chunk: int) -> None:
    documents = random_embeddings(40, 0, integers=True)
    queries, ids = documents[:8], doc_ids(40)
    exclude = np.array([0, 1, 2, 3, -1, -1, -1, -1])
    expected = [
        [d for d in row if d != own][:10]
        for row, own in zip(sorted_pairs(queries, documents, ids), exclude, strict=True)
    ]
    assert rank(queries, documents, ids, 10, chunk, exclude=exclude).rows.tolist() == expected


@pytest.mark.parametrize("chunk", [1, 9, 40])
def test_candidates_limit_what_a_query_is_answered_with(chunk: int) -> None:
    documents = random_embeddings(40, 0, integers=True)
    queries, ids = random_embeddings(4, 1, integers=True), doc_ids(40)
    candidates = [np.array([3, 30, 8]), np.arange(40), np.array([], dtype=np.int64), np.array([39])]
    expected = [
        ([d for d in row if d in allowed] + [-1] * 10)[:10]
        for row, allowed in zip(sorted_pairs(queries, documents, ids), candidates, strict=True)
    ]
    assert rank(queries, documents, ids, 10, chunk, candidates=candidates).rows.tolist() == expected


def test_negative_zero_ties_with_zero() -> None:
    ranking = rank(torch.tensor([[1.0]]), torch.tensor([[-0.0], [0.0], [-1e-30]]), ["b", "a", "c"], 3, 3)
    assert ranking.rows.tolist() == [[0, 1, 2]]


def test_bf16_embeddings_are_scored_in_fp32() -> None:
    queries = random_embeddings(4, 0, integers=False).bfloat16()
    documents = random_embeddings(30, 1, integers=False).bfloat16()
    ranking = rank(queries, documents, doc_ids(30), 30, 30)
    assert ranking.rows.tolist() == sorted_pairs(queries.float(), documents.float(), doc_ids(30))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_embeddings_are_refused(value: float) -> None:
    broken = torch.ones(3, 2)
    broken[1, 0] = value
    with pytest.raises(EvaluationError, match="1 of 3 query embeddings"):
        TopK(broken, ["a"], 1)
    with pytest.raises(EvaluationError, match="1 of 3 document embeddings"):
        TopK(torch.ones(1, 2), list("abc"), 1).add(np.arange(3), broken)
