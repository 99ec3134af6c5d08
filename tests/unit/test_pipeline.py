"""The whole way from texts to scores, against the same way gone step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.encoder import Encoder, open_encoder
from mergesearch.evaluation.pipeline import RetrievalEvaluator, WeightedCollection
from tests.tiny_models import WORDS, make_tiny, make_variant

if TYPE_CHECKING:
    from pathlib import Path

pytrec_eval = pytest.importorskip("pytrec_eval", reason="needs the extra `parity`")


def make_collection(seed: int = 0, n_queries: int = 12, n_documents: int = 80) -> Collection:
    rng = np.random.default_rng(seed)
    doc_ids = [f"doc{i}" for i in rng.permutation(n_documents)]
    doc_texts = [" ".join(rng.choice(WORDS, rng.integers(2, 20))) for _ in doc_ids]
    doc_texts[5] = doc_texts[40]  # A pair that ties for every query.
    query_ids = [f"q{i}" for i in range(n_queries)]
    query_texts = [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in query_ids]
    qrels = {
        q: {doc_ids[d]: int(rng.integers(1, 3)) for d in rng.choice(n_documents, 6, replace=False)} for q in query_ids
    }
    return Collection(f"made{seed}", "dev", query_ids, query_texts, doc_ids, doc_texts, qrels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("xlm-roberta", tmp_path_factory.mktemp("model") / "xlm-roberta", n_layers=2)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return open_encoder(folder)


@pytest.fixture(scope="module")
def collection() -> Collection:
    return make_collection()


def by_hand(folder: Path, collection: Collection, depth: int) -> dict[str, dict[str, float]]:
    """sentence-transformers' embeddings, all pairs, and the ids that may not be returned left out."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    queries = model.encode_query(collection.query_texts, show_progress_bar=False)
    documents = model.encode_document(collection.doc_texts, show_progress_bar=False)
    run = {}
    for query_id, scores in zip(collection.query_ids, queries @ documents.T, strict=True):
        found = [(float(s), d) for s, d in zip(scores, collection.doc_ids, strict=True) if d != query_id]
        run[query_id] = {d: s for s, d in sorted(found, reverse=True)[:depth]}
    return run


def test_scores_are_trec_evals_of_sentence_transformers_embeddings(
    folder: Path, encoder: Encoder, collection: Collection
) -> None:
    result = RetrievalEvaluator(encoder, [WeightedCollection(collection)]).evaluate()
    run = by_hand(folder, collection, 10)
    expected = pytrec_eval.RelevanceEvaluator(collection.qrels, {"ndcg_cut.10"}).evaluate(run)
    (scores,) = result.collections
    assert scores.query_ids == tuple(collection.query_ids)
    assert (scores.collection, scores.metric) == ("made0", "ndcg@10")
    assert scores.scores.tolist() == pytest.approx([expected[q]["ndcg_cut_10"] for q in collection.query_ids], abs=1e-9)
    assert result.value == pytest.approx(scores.scores.mean())
    assert 0 < result.value < 1


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_chunks_and_backends_do_not_move_a_score(encoder: Encoder, collection: Collection, backend: str) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss", reason="faiss is an extra")
    weighted = [WeightedCollection(collection)]
    whole = RetrievalEvaluator(encoder, weighted, depth=20, batch_tokens=256)
    expected = whole.evaluate(keep_runs=True).collections[0]
    for chunk in (1, 33, 80):
        evaluator = RetrievalEvaluator(
            encoder, weighted, depth=20, chunk_documents=chunk, batch_tokens=256, backend=backend
        )
        scores = evaluator.evaluate(keep_runs=True).collections[0]
        assert scores.run == expected.run
        assert np.array_equal(scores.scores, expected.scores)


def test_the_same_weights_give_the_same_bits_and_others_do_not(
    folder: Path, collection: Collection, tmp_path: Path
) -> None:
    encoder, other = open_encoder(folder), open_encoder(make_variant(folder, tmp_path / "v", seed=3))
    evaluator = RetrievalEvaluator(encoder, [WeightedCollection(collection)])
    first = evaluator.evaluate(keep_runs=True).collections[0]
    own = {name: parameter.clone() for name, parameter in encoder.parameters.items()}
    with torch.no_grad():
        for name, parameter in encoder.parameters.items():
            parameter.copy_(other.parameters[name])
    assert evaluator.evaluate(keep_runs=True).collections[0].run != first.run
    with torch.no_grad():
        for name, parameter in encoder.parameters.items():
            parameter.copy_(own[name])
    again = evaluator.evaluate(keep_runs=True).collections[0]
    assert again.run == first.run
    assert np.array_equal(again.scores, first.scores)


def test_several_collections_are_weighted(encoder: Encoder, collection: Collection) -> None:
    other = make_collection(seed=1, n_queries=5)
    evaluator = RetrievalEvaluator(
        encoder, [WeightedCollection(collection, 1.0), WeightedCollection(other, 3.0)], metric="recall@20"
    )
    result = evaluator.evaluate()
    first, second = (c.scores.mean() for c in result.collections)
    assert result.value == pytest.approx((first + 3 * second) / 4)
    assert [len(c.scores) for c in result.collections] == [12, 5]


def test_reports_tokens_seconds_and_progress(encoder: Encoder, collection: Collection) -> None:
    evaluator = RetrievalEvaluator(encoder, [WeightedCollection(collection)], batch_tokens=64)
    calls: list[tuple[int, int]] = []
    result = evaluator.evaluate(lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, evaluator.n_batches) for i in range(evaluator.n_batches)]
    lengths = [
        len(encoder.model.tokenizer(prompt + text, truncation=True, max_length=64)["input_ids"])
        for prompt, texts in (("query: ", collection.query_texts), ("passage: ", collection.doc_texts))
        for text in texts
    ]
    assert result.tokens == evaluator.n_tokens == sum(lengths)
    assert evaluator.n_padded_tokens <= sum(lengths) / 0.95
    assert set(result.seconds) == {"encode", "search", "score"}
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert result.notes == ()


def test_lengths_and_prompts_are_the_users_where_given(encoder: Encoder, collection: Collection) -> None:
    default = RetrievalEvaluator(encoder, [WeightedCollection(collection)])
    bare = RetrievalEvaluator(encoder, [WeightedCollection(collection, query_prompt="", document_prompt="")])
    short = RetrievalEvaluator(encoder, [WeightedCollection(collection)], max_query_length=4, max_document_length=8)
    prompted, unprompted = default.collections[0], bare.collections[0]
    per_text = {
        kind: len(encoder.model.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        for kind, prompt in (("query", "query:"), ("document", "passage:"))
    }
    assert (prompted.queries.lengths - unprompted.queries.lengths == per_text["query"]).all()
    assert (prompted.documents.lengths - unprompted.documents.lengths)[0] == per_text["document"]
    assert short.collections[0].queries.lengths.max() == 4
    assert short.collections[0].documents.lengths.max() == 8


def test_candidates_are_all_that_is_encoded_and_ranked(encoder: Encoder, collection: Collection) -> None:
    lists = {q: collection.doc_ids[i : i + 5] for i, q in enumerate(collection.query_ids)}
    evaluator = RetrievalEvaluator(
        encoder, [WeightedCollection(replace(collection, candidates=lists))], chunk_documents=3
    )
    (scores,) = evaluator.evaluate(keep_runs=True).collections
    assert scores.run is not None
    assert {q: {d for d, _ in found} for q, found in scores.run.items()} == {
        q: set(found) for q, found in lists.items()
    }
    assert evaluator.collections[0].documents.n_texts == 16
    whole = RetrievalEvaluator(encoder, [WeightedCollection(collection)], depth=80)
    (full,) = whole.evaluate(keep_runs=True).collections
    assert full.run is not None
    for query_id, found in scores.run.items():
        ranked = [d for d, _ in full.run[query_id] if d in lists[query_id]]
        assert [d for d, _ in found] == ranked


def test_a_query_that_is_a_document_does_not_find_itself(encoder: Encoder) -> None:
    made = make_collection(seed=2)
    ids = made.doc_ids[:12]
    qrels = {new: made.qrels[old] for old, new in zip(made.query_ids, ids, strict=True)}
    own = replace(made, query_ids=ids, query_texts=made.doc_texts[:12], qrels=qrels)

    def found_itself(collection: Collection) -> list[bool]:
        weighted = WeightedCollection(collection, query_prompt="", document_prompt="")
        (scores,) = RetrievalEvaluator(encoder, [weighted]).evaluate(keep_runs=True).collections
        assert scores.run is not None
        assert all(len(found) == 10 for found in scores.run.values())
        return [q in dict(found) for q, found in scores.run.items()]

    assert found_itself(own) == [False] * 12
    assert found_itself(replace(own, exclude_same_id=False)) == [True] * 12


def test_dot_product_models_are_not_normalised(tmp_path: Path, collection: Collection) -> None:
    encoder = open_encoder(make_tiny("distilbert", tmp_path / "distilbert", n_layers=1))
    evaluator = RetrievalEvaluator(encoder, [WeightedCollection(collection)])
    (scores,) = evaluator.evaluate(keep_runs=True).collections
    assert scores.run is not None
    queries = encoder.encode(evaluator.collections[0].queries)
    documents = encoder.encode(evaluator.collections[0].documents)
    best = (queries @ documents.T).max(dim=1).values
    assert [found[0][1] for found in scores.run.values()] == pytest.approx(best.tolist(), rel=1e-5)
    assert best.max() > 1.5


def test_a_store_on_disk_changes_nothing(encoder: Encoder, collection: Collection, tmp_path: Path) -> None:
    weighted = [WeightedCollection(collection)]
    stored = RetrievalEvaluator(encoder, weighted, store=tmp_path)
    assert isinstance(stored.collections[0].documents.ids, np.memmap)
    expected = RetrievalEvaluator(encoder, weighted).evaluate().collections[0].scores
    assert np.array_equal(stored.evaluate().collections[0].scores, expected)


def test_broken_weights_are_an_error_not_a_score(folder: Path, collection: Collection) -> None:
    encoder = open_encoder(folder)
    evaluator = RetrievalEvaluator(encoder, [WeightedCollection(collection)])
    with torch.no_grad():
        next(iter(encoder.parameters.values())).fill_(float("nan"))
    with pytest.raises(EvaluationError, match="NaN"):
        evaluator.evaluate()


def test_split_batches_are_noted_once(folder: Path, collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = open_encoder(folder)
    evaluator = RetrievalEvaluator(encoder, [WeightedCollection(collection)])
    expected = evaluator.evaluate().collections[0].scores
    forward = encoder.model.forward

    def limited(features: dict[str, torch.Tensor]) -> object:
        if len(features["input_ids"]) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return forward(features)

    monkeypatch.setattr(encoder.model, "forward", limited)
    result = evaluator.evaluate()
    assert result.out_of_memory > 0
    assert len(set(result.notes)) == len(result.notes)
    assert all("was split" in note or "memory ran out" in note for note in result.notes)
    assert np.allclose(result.collections[0].scores, expected, atol=0.05)
    again = evaluator.evaluate()  # nothing fails any more, and what was split stays so
    assert again.out_of_memory == 0
    assert all("was split" in note for note in again.notes)
    assert np.array_equal(again.collections[0].scores, result.collections[0].scores)
    monkeypatch.setattr(encoder.model, "forward", forward)
    encoder.most_tokens = None
    assert evaluator.evaluate().notes == ()


def test_bad_requests_say_what_is_wrong(encoder: Encoder, collection: Collection) -> None:
    weighted = [WeightedCollection(collection)]
    with pytest.raises(EvaluationError, match="no collection"):
        RetrievalEvaluator(encoder, [])
    with pytest.raises(EvaluationError, match="Did you mean 'ndcg'"):
        RetrievalEvaluator(encoder, weighted, metric="ndgc@10")
    with pytest.raises(EvaluationError, match="unknown search backend"):
        RetrievalEvaluator(encoder, weighted, backend="annoy")
