"""Pairs that are put together are what the tokenizer makes of whole pairs, and are cut as it cuts them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.joining import WHOLE, Form, Lengths, OneText, TwoTexts
from mergesearch.evaluation.pairing import plan_pairs
from mergesearch.evaluation.pairs import PairPlan, longest_first
from mergesearch.evaluation.rerank_settings import RerankSettings
from mergesearch.evaluation.reranker_files import RerankerFiles
from mergesearch.evaluation.rerankers import get_family
from tests.tiny_models import RERANKERS, tiny_reranker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TWO = ["bert", "roberta", "xlm-roberta", "modernbert", "distilbert", "llama"]
words = st.sampled_from(
    ["search", "model", "the", "health?", "x.", "cells\n", "(a)", "42", "é", "文", "\n", "", "#Doc"]
)
texts = st.one_of(
    st.lists(words, max_size=30).map(" ".join), st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]))
)
some = st.lists(texts, min_size=1, max_size=4)
PUBLISHED = {
    name: get_family(name).form(RerankSettings(), RerankerFiles(folder=None))  # type: ignore[arg-type]
    for name in ("mono_t5", "yes_no", "query_likelihood")
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    root = tmp_path_factory.mktemp("tokenizers")
    made = {kind: AutoTokenizer.from_pretrained(tiny_reranker(kind, root / kind, n_layers=1)) for kind in RERANKERS}

    def find(kind: str) -> Any:
        return made[kind]

    return find


def planned(
    tokenizer: Any,
    form: Form,
    queries: Sequence[str],
    documents: Sequence[str],
    lengths: Lengths,
    *,
    notes: list[str] | None = None,
    **options: Any,
) -> PairPlan:
    """Every query with every document."""
    pairs = np.array([(q, d) for q in range(len(queries)) for d in range(len(documents))])
    note = (lambda _: None) if notes is None else notes.append
    return plan_pairs(tokenizer, form, queries, documents, pairs, lengths, batch_tokens=128, note=note, **options)


def ids_of(plan: PairPlan, pair: int) -> list[int]:
    ids, lengths = plan.joined(np.array([pair]))
    assert lengths.tolist() == [len(ids)] == [plan.lengths[pair]]
    return ids.tolist()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", TWO)
@settings(max_examples=60)
@given(queries=some, documents=some, max_length=st.integers(8, 40))
def test_two_texts_are_tokenised_and_cut_as_the_tokenizer_does_it(
    tokenizer: Callable[[str], Any],
    kind: str,
    side: str,
    queries: list[str],
    documents: list[str],
    max_length: int,
) -> None:
    own, notes = copy.deepcopy(tokenizer(kind)), []
    own.truncation_side = side
    form = TwoTexts("query: {query}", "document: {document}") if kind == "llama" else TwoTexts()
    plan = planned(own, form, queries, documents, Lengths(max_length), takes_types=kind == "bert", notes=notes)
    rows = np.arange(plan.n_texts)
    ids, mask = plan.padded(rows, pad_id=0, left=False)
    types = plan.extras(rows, mask.astype(bool)).get("token_type_ids")
    for i in rows:
        pair = queries[i // len(documents)], documents[i % len(documents)]
        if kind == "llama":
            pair = f"query: {pair[0]}", f"document: {pair[1]}"
        # As lists, for a single empty text counts as none.
        whole = own([pair[0]], [pair[1]], truncation="longest_first", max_length=max_length)
        assert ids_of(plan, i) == ids[i][mask[i] == 1].tolist() == whole["input_ids"][0]
        if types is not None:
            assert types[i][mask[i] == 1].tolist() == whole["token_type_ids"][0]
    assert (types is not None) == (kind == "bert")
    assert notes == []  # no tokenizer that is given two texts joins them


@pytest.mark.parametrize(("name", "kind"), [("mono_t5", "t5"), ("yes_no", "qwen3")])
@settings(max_examples=60)
@given(queries=some, documents=some)
def test_one_text_is_tokenised_as_a_whole_would_be(
    tokenizer: Callable[[str], Any], name: str, kind: str, queries: list[str], documents: list[str]
) -> None:
    own, form = tokenizer(kind), PUBLISHED[name]
    assert isinstance(form, OneText)
    plan = planned(own, form, queries, documents, Lengths(5000))
    for i in range(plan.n_texts):
        before, _, rest = form.template.partition("{query}")
        between, _, after = rest.partition("{document}")
        text = f"{before}{queries[i // len(documents)]}{between}{documents[i % len(documents)]}{after}"
        assert ids_of(plan, i) == own(text)["input_ids"]


@settings(max_examples=60)
@given(queries=some, documents=some)
def test_a_query_whose_likelihood_is_asked_is_tokenised_by_itself(
    tokenizer: Callable[[str], Any], queries: list[str], documents: list[str]
) -> None:
    own = tokenizer("qwen3")
    queries = [query or "a" for query in queries]
    plan = planned(own, PUBLISHED["query_likelihood"], queries, documents, Lengths(5000))
    for i in range(plan.n_texts):
        query, document = queries[i // len(documents)], documents[i % len(documents)]
        ids = own.encode(query, add_special_tokens=False)
        assert ids_of(plan, i) == own.encode(f"Document: {document} Query:", add_special_tokens=False) + ids
        assert plan.extras(np.array([i]), None)["seconds"].tolist() == [len(ids)]


@pytest.mark.parametrize(("name", "kind"), [("mono_t5", "t5"), ("yes_no", "qwen3"), ("query_likelihood", "qwen3")])
@settings(max_examples=60)
@given(documents=some, spare=st.integers(4, 40))
def test_only_the_end_of_a_document_is_cut(
    tokenizer: Callable[[str], Any], name: str, kind: str, documents: list[str], spare: int
) -> None:
    own, queries = tokenizer(kind), ["a", "b c"]
    uncut = planned(own, PUBLISHED[name], queries, documents, Lengths(5000))
    fixed = planned(own, PUBLISHED[name], ["a"], ["a"], Lengths(5000)).lengths[0]
    max_length = int(fixed) + spare
    cut = planned(own, PUBLISHED[name], queries, documents, Lengths(max_length))
    assert (cut.lengths == np.minimum(uncut.lengths, max_length)).all()
    for i in range(cut.n_texts):
        whole, left = ids_of(uncut, i), ids_of(cut, i)
        same = next((n for n, (a, b) in enumerate(zip(whole, left, strict=False)) if a != b), len(left))
        assert left[same:] == whole[len(whole) - (len(left) - same) :]  # one stretch is missing, and nothing else


@settings(max_examples=200)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=5),
    room=st.integers(1, 50),
)
def test_the_longer_text_is_cut_first(lengths: list[tuple[int, int]], room: int) -> None:
    kept = longest_first(np.array(lengths), room)
    for (a, b), (x, y) in zip(lengths, kept.tolist(), strict=True):
        assert x + y == min(a + b, room)
        assert (x <= a, y <= b) == (True, True)
        # What is cut of a text leaves it no shorter than the other one, but for the odd token.
        assert x == a or x >= y - 1
        assert y == b or y >= x - 1


def test_texts_may_have_limits_of_their_own(tokenizer: Callable[[str], Any]) -> None:
    own = tokenizer("bert")
    plan = planned(own, TwoTexts(), ["a b c d", "x"], ["x y z", "x"], Lengths(30, query=2, document=1))
    assert plan.lengths.tolist() == [6, 6, 5, 5]
    assert own.convert_ids_to_tokens(ids_of(plan, 0)) == ["[CLS]", "a", "b", "[SEP]", "x", "[SEP]"]


def test_a_tokenizer_that_joins_across_a_seam_is_given_whole_pairs(tokenizer: Callable[[str], Any]) -> None:
    own, notes = tokenizer("qwen3"), []
    form = OneText("{document}s{query}")  # "cell" and "s" behind it are other tokens than "cells"
    queries, documents = ["earch", "a b"], ["cell", "the ", "x " * 30]
    plan = planned(own, form, queries, documents, Lengths(24), notes=notes)
    assert notes == [WHOLE]
    for i, (query, document) in enumerate((q, d) for q in queries for d in documents):
        whole = own(f"{document}s{query}")["input_ids"]
        if len(whole) <= 24:
            assert ids_of(plan, i) == whole
        else:
            assert (plan.lengths[i], ids_of(plan, i)[-2:]) == (24, whole[-2:])


def test_texts_are_tokenised_once_each(tokenizer: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the pairs that are compared with whole ones, which are a thousand at most."""
    monkeypatch.setattr("mergesearch.evaluation.pairing._SAMPLE", 2)
    own, queries, documents = tokenizer("bert"), [f"q {i}" for i in range(20)], [f"d {i}" for i in range(30)]
    seen: list[str] = []
    call = type(own).__call__

    def counted(self: Any, text: Any, pair: Any = None, **options: Any) -> Any:
        seen.extend([text] if isinstance(text, str) else text)
        return call(self, text, pair, **options)

    monkeypatch.setattr(type(own), "__call__", counted)
    plan = planned(own, TwoTexts(), queries, documents, Lengths(40))
    assert plan.n_texts == 600
    assert len(seen) < 50 + 2 * 4 + 10


def test_a_plan_of_pairs_is_a_plan(tokenizer: Callable[[str], Any], tmp_path: Path) -> None:
    own, queries, documents = tokenizer("bert"), ["a", "the heart of a cell"], ["x", "search model " * 9, "y z"]
    plan = planned(own, TwoTexts(), queries, documents, Lengths(40), takes_types=True)
    assert sorted(np.concatenate(plan.batches).tolist()) == list(range(6))
    assert plan.n_tokens == plan.lengths.sum() <= plan.n_padded_tokens
    rows = np.array([4, 1])
    part = plan.subset(rows)
    assert [ids_of(part, 0), ids_of(part, 1)] == [ids_of(plan, 4), ids_of(plan, 1)]
    stored = planned(own, TwoTexts(), queries, documents, Lengths(40), takes_types=True, store=tmp_path)
    assert stored.fingerprint == plan.fingerprint != part.fingerprint
    assert planned(own, TwoTexts(), queries, documents, Lengths(39)).fingerprint != plan.fingerprint
    nothing = plan_pairs(own, TwoTexts(), queries, documents, np.zeros((0, 2), int), Lengths(40), batch_tokens=64)
    assert (nothing.n_texts, nothing.n_tokens, nothing.batches) == (0, 0, ())


def test_bad_templates_say_what_to_do(tokenizer: Callable[[str], Any]) -> None:
    own = tokenizer("t5")
    with pytest.raises(EvaluationError, match=r"must hold \{query\} once and \{document\} once"):
        planned(own, OneText("{query} {query}"), ["a"], ["b"], Lengths(40))
    with pytest.raises(
        EvaluationError, match=r"must hold \{document\} once: mend `evaluation.rerank.document_template`"
    ):
        planned(own, TwoTexts("{query}", "text"), ["a"], ["b"], Lengths(40))
    with pytest.raises(EvaluationError, match="leaves no room for texts"):
        planned(own, PUBLISHED["mono_t5"], ["a"], ["b"], Lengths(3))
    with pytest.raises(EvaluationError, match="a query has no tokens"):
        planned(tokenizer("qwen3"), PUBLISHED["query_likelihood"], [""], ["b"], Lengths(99))
