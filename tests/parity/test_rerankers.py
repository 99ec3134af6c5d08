"""Scores of pairs are those of sentence-transformers' `CrossEncoder`, or of the formula that a paper gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from mergesearch.evaluation.rerank_settings import RerankSettings
from mergesearch.evaluation.reranker import Reranker, open_reranker
from tests.tiny_models import tiny_reranker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUERIES = ["what is a cell?", "protein search, and the health of the heart", "a"]
DOCUMENTS = [
    "the cell is a graph node.",
    "search model " * 15,
    "diet, effect\nof treatment with blood",
    "x",
    "Vitamin C",
]
PAIRS = np.array([(q, d) for q in range(len(QUERIES)) for d in range(len(DOCUMENTS))])
TEXTS = [(QUERIES[q], DOCUMENTS[d]) for q, d in PAIRS]
CLOSE = {"atol": 2e-5, "rtol": 1e-5}
BATCHES = [64, 300, 4096]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("rerankers")
    made: dict[str, Path] = {}

    def make(kind: str, name: str = "", **options: Any) -> Path:
        key = kind + name
        if key not in made:
            made[key] = tiny_reranker(kind, root / key, n_layers=2, **options)
        return made[key]

    return make


def scores(reranker: Reranker, batch_tokens: int) -> torch.Tensor:
    return reranker.logits(reranker.plan_pairs(QUERIES, DOCUMENTS, PAIRS, batch_tokens=batch_tokens))


def predicted(model: CrossEncoder, texts: list[tuple[str, str]], **options: Any) -> torch.Tensor:
    found: torch.Tensor = model.predict(texts, convert_to_tensor=True, show_progress_bar=False, **options)
    return found


@pytest.mark.parametrize("batch_tokens", BATCHES)
@pytest.mark.parametrize("max_length", [None, 24])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert", "distilbert"])
def test_cross_encoders(tiny: Callable[..., Path], kind: str, max_length: int | None, batch_tokens: int) -> None:
    theirs = CrossEncoder(str(tiny(kind)), device="cpu", max_length=max_length)
    ours = open_reranker(tiny(kind), RerankSettings(max_length=max_length))
    assert ours.describe().family == "cross_encoder"
    found = scores(ours, batch_tokens)
    torch.testing.assert_close(found, predicted(theirs, TEXTS, activation_fn=torch.nn.Identity()), **CLOSE)
    torch.testing.assert_close(ours.activated(found), predicted(theirs, TEXTS), **CLOSE)


def test_two_labels_are_the_log_probability_of_the_second(tiny: Callable[..., Path]) -> None:
    """monoBERT: log softmax over not relevant and relevant."""
    folder = tiny("bert", "-2", config={"num_labels": 2})
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = torch.cat([model(**tokenizer(*pair, return_tensors="pt")).logits for pair in TEXTS])
    ours = open_reranker(folder, RerankSettings())
    expected = torch.log_softmax(logits, dim=1)[:, 1]
    torch.testing.assert_close(ours.activated(scores(ours, 300)), expected, **CLOSE)


@pytest.mark.parametrize("batch_tokens", BATCHES)
def test_rank_llama(tiny: Callable[..., Path], batch_tokens: int) -> None:
    theirs = CrossEncoder(str(tiny("llama")), device="cpu", activation_fn=torch.nn.Identity())
    ours = open_reranker(tiny("llama"), RerankSettings())
    assert ours.describe().family == "rank_llama"
    texts = [(f"query: {query}", f"document: {document}") for query, document in TEXTS]
    found = scores(ours, batch_tokens)
    torch.testing.assert_close(found, predicted(theirs, texts), **CLOSE)
    assert torch.equal(ours.activated(found), found)


SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def qwen3_prompt(query: str, document: str, task: str) -> tuple[str, str]:
    """The published prompt, as two texts that meet at a special token."""
    asked = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: {task}\n<Query>: {query}\n"
    return f"{asked}<Document>: {document}<|im_end|>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.mark.parametrize("batch_tokens", BATCHES)
@pytest.mark.parametrize("task", [None, "find a treatment"])
def test_yes_and_no(tiny: Callable[..., Path], batch_tokens: int, task: str | None) -> None:
    folder = tiny("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    transformer = Transformer(str(folder), transformer_task="text-generation")
    theirs = CrossEncoder(modules=[transformer, LogitScore(yes, no)], device="cpu")
    ours = open_reranker(folder, RerankSettings(family="yes_no", instruction=task))
    assert ours.describe().tokens == ("no", "yes")
    found = scores(ours, batch_tokens)
    texts = [qwen3_prompt(*pair, task or TASK) for pair in TEXTS]
    torch.testing.assert_close(found, predicted(theirs, texts, activation_fn=torch.nn.Identity()), **CLOSE)
    torch.testing.assert_close(ours.activated(found), predicted(theirs, texts), **CLOSE)


@pytest.mark.parametrize("batch_tokens", BATCHES)
@pytest.mark.parametrize(("kind", "answers"), [("t5", ("▁false", "▁true")), ("mt5", ("▁no", "▁yes"))])
def test_mono_t5(tiny: Callable[..., Path], kind: str, answers: tuple[str, str], batch_tokens: int) -> None:
    """log softmax over the logits of both answers at the first decoder step."""
    folder = tiny(kind)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.convert_tokens_to_ids(list(answers))
    expected = []
    for query, document in TEXTS:
        given = tokenizer(f"Query: {query} Document: {document} Relevant:", return_tensors="pt")
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.inference_mode():
            logits = model(given.input_ids, attention_mask=given.attention_mask, decoder_input_ids=start).logits
        expected.append(torch.log_softmax(logits[0, 0, ids], dim=0)[1])
    ours = open_reranker(folder, RerankSettings())
    assert (ours.describe().family, ours.describe().tokens) == ("mono_t5", answers)
    torch.testing.assert_close(ours.activated(scores(ours, batch_tokens)), torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("batch_tokens", BATCHES)
def test_query_likelihood(tiny: Callable[..., Path], batch_tokens: int) -> None:
    """RankingGPT: the mean log-probability of the query's tokens, each given the document and those before it."""
    folder = tiny("qwen3")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    expected = []
    for query, document in TEXTS:
        context = tokenizer.encode(f"Document: {document} Query:", add_special_tokens=False)
        target = tokenizer.encode(query, add_special_tokens=False)
        with torch.inference_mode():
            logits = model(torch.tensor([context + target])).logits[0]
        logs = torch.log_softmax(logits, dim=1)
        positions = range(len(context) - 1, len(context) + len(target) - 1)
        expected.append(sum(logs[i, token] for i, token in zip(positions, target, strict=True)) / len(target))
    ours = open_reranker(folder, RerankSettings(family="query_likelihood"))
    found = scores(ours, batch_tokens)
    torch.testing.assert_close(found, torch.stack(expected), **CLOSE)
    assert torch.equal(ours.activated(found), found)
