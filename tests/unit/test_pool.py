from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from mergesearch.errors import CollectionError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.pool import tokenize


def collection(documents: dict[str, str], queries: dict[str, str], qrels: dict[str, dict[str, int]]) -> Collection:
    return Collection(
        "made",
        "dev",
        list(queries),
        list(queries.values()),
        list(documents),
        list(documents.values()),
        qrels,
    )


RIVERS = collection(
    {
        "rel": "the rhine is a river",
        "zero": "completely unrelated words",
        "near1": "river river river",
        "near2": "a river in the north",
        "near3": "one river among the many long streams and lakes that are on the map of the north",
        "far": "bread and butter",
    },
    {"q1": "river", "q2": "xylophone"},
    {"q1": {"rel": 2, "zero": 0}, "q2": {"far": 1}},
)


def test_pool_is_judged_documents_and_best_negatives() -> None:
    # q1: "river river river" has the highest term frequency and nothing else in it; q2 matches no document.
    assert RIVERS.with_pool(1, seed=0).doc_ids == ["rel", "zero", "near1", "far"]


def test_negatives_without_a_word_of_the_query_are_not_taken() -> None:
    assert RIVERS.with_pool(100, seed=0).doc_ids == RIVERS.doc_ids  # all others are judged or match
    unmatched = collection({"a": "x", "b": "y", "c": "z z"}, {"q": "x"}, {"q": {"a": 1}})
    assert unmatched.with_pool(100, seed=0).doc_ids == ["a"]


def test_no_negatives_keeps_the_judged() -> None:
    pool = RIVERS.with_pool(0, seed=0)
    assert pool.doc_ids == ["rel", "zero", "far"]
    assert pool.qrels == RIVERS.qrels
    assert (pool.query_ids, pool.query_texts) == (RIVERS.query_ids, RIVERS.query_texts)


def test_pools_grow_with_the_number_of_negatives() -> None:
    pools = [set(RIVERS.with_pool(k, seed=0).doc_ids) for k in range(5)]
    assert all(small <= large for small, large in itertools.pairwise(pools))


def test_a_document_that_is_the_query_is_no_negative() -> None:
    twins = collection(
        {"q": "rivers flow", "a": "rivers run", "b": "rivers flow fast down"},
        {"q": "rivers flow"},
        {"q": {"a": 1}},
    )
    assert twins.with_pool(1, seed=0).doc_ids == ["a", "b"]
    assert replace(twins, exclude_same_id=False).with_pool(1, seed=0).doc_ids == ["q", "a"]


def test_pool_does_not_depend_on_the_order_of_the_corpus_even_with_ties() -> None:
    documents = {f"d{i}": "same words" for i in range(40)} | {"rel": "other"}
    first = collection(documents, {"q": "words"}, {"q": {"rel": 1}})
    shuffled = list(documents.items())
    random.Random(1).shuffle(shuffled)
    second = collection(dict(shuffled), {"q": "words"}, {"q": {"rel": 1}})
    pools = [set(c.with_pool(5, seed=3).doc_ids) for c in (first, second)]
    assert pools[0] == pools[1]
    assert len(pools[0]) == 6
    assert set(first.with_pool(5, seed=4).doc_ids) != pools[0]


def test_empty_documents_do_not_disturb_it() -> None:
    documents = {"empty": "", "rel": "river", "near": "a river"}
    assert collection(documents, {"q": "river"}, {"q": {"rel": 1}}).with_pool(5, seed=0).doc_ids == [
        "rel",
        "near",
    ]
    bare = collection({"a": "", "b": "!!"}, {"q": "river"}, {"q": {"a": 1}})
    assert bare.with_pool(5, seed=0).doc_ids == ["a"]


def test_scripts_without_spaces_are_matched_by_pairs_of_characters() -> None:
    assert tokenize("東京都 is big") == ["東京", "京都", "is", "big"]
    assert tokenize("Straße, naïve x2") == ["straße", "naïve", "x2"]
    towns = collection(
        {"rel": "日本の首都は東京です", "near": "京都は古い都です", "far": "猫が好きです"},
        {"q": "東京都の人口"},
        {"q": {"rel": 1}},
    )
    assert towns.with_pool(1, seed=0).doc_ids == ["rel", "near"]


def test_bad_requests_are_refused() -> None:
    with pytest.raises(CollectionError, match="-1 negatives"):
        RIVERS.with_pool(-1, seed=0)
    listed = replace(RIVERS, candidates={"q1": ["rel"], "q2": ["far"]})
    with pytest.raises(CollectionError, match="candidate lists"):
        listed.with_pool(1, seed=0)
