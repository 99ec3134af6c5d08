"""Losses on examples are those of LM_Cocktail's published code, written out here with plain transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from mergesearch.errors import CollectionError, EvaluationError, SourceError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.encoder import open_encoder
from mergesearch.evaluation.examples import (
    DRAWN,
    CompletionExample,
    ExampleSet,
    RetrievalExample,
    draw_examples,
    read_completion_examples,
    read_retrieval_examples,
)
from mergesearch.evaluation.losses import contrastive_loss, language_model_loss
from tests.tiny_models import WORDS, make_tiny
from tests.tiny_studies import write_lines

N_NEGATIVES = 7


def text(rng: np.random.Generator, longest: int = 12) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(2, longest)))


@pytest.fixture(scope="module")
def retrieval() -> tuple[RetrievalExample, ...]:
    rng = np.random.default_rng(0)
    return tuple(RetrievalExample(text(rng), text(rng), tuple(text(rng) for _ in range(N_NEGATIVES))) for _ in range(5))


@pytest.fixture(scope="module")
def completions() -> tuple[CompletionExample, ...]:
    rng = np.random.default_rng(1)
    return tuple(CompletionExample(text(rng), text(rng)) for _ in range(5))


def batches(items: Any, size: int) -> list[Any]:
    return [items[i : i + size] for i in range(0, len(items), size)]


@torch.no_grad()
def published_contrastive(folder: Path, examples: tuple[RetrievalExample, ...], batch_size: int = 2) -> float:
    """CLS, length 1, similarities / 0.05, target i · (passages / queries), the unweighted mean over batches."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)

    def embed(texts: list[str]) -> torch.Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
        return torch.nn.functional.normalize(model(**tokens).last_hidden_state[:, 0], dim=-1)

    total = 0.0
    for batch in batches(examples, batch_size):
        queries = embed([e.query for e in batch])
        passages = embed([p for e in batch for p in (e.positive, *e.negatives)])
        target = torch.arange(len(queries)) * (len(passages) // len(queries))
        total += torch.nn.CrossEntropyLoss(reduction="mean")(queries @ passages.T / 0.05, target)
    return float(total / len(batches(examples, batch_size)))


@torch.no_grad()
def published_language_model(folder: Path, examples: tuple[CompletionExample, ...], batch_size: int = 2) -> float:
    """Inputs masked, batches padded to one length, the model's own `loss`, the unweighted mean over batches."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    length, ids, labels = 60, [], []
    for e in examples:
        whole = [*tokenizer.encode(f"{e.input} {e.output}"), tokenizer.eos_token_id]
        prompt = tokenizer.encode(e.input)
        ids.append(whole + [0] * (length - len(whole)))
        labels.append([-100] * len(prompt) + whole[len(prompt) :] + [-100] * (length - len(whole)))
    assert all(len(row) == length for row in ids)
    losses = [
        model(input_ids=torch.tensor(i), labels=torch.tensor(y), attention_mask=torch.tensor(i).ne(0)).loss
        for i, y in zip(batches(ids, batch_size), batches(labels, batch_size), strict=True)
    ]
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [2, 3])
def test_the_contrastive_loss_is_the_published_one(
    tmp_path: Path, retrieval: tuple[RetrievalExample, ...], seed: int, batch_size: int
) -> None:
    folder = make_tiny("bert", tmp_path / "model", n_layers=2, seed=seed)
    encoder = open_encoder(folder, pooling="cls", normalize=True)
    loss = contrastive_loss(encoder, ExampleSet(retrieval, batch_size=batch_size))
    assert loss == pytest.approx(published_contrastive(folder, retrieval, batch_size), abs=1e-6, rel=0)


def test_examples_need_not_have_equally_many_negatives(tmp_path: Path, retrieval: tuple[RetrievalExample, ...]) -> None:
    folder = make_tiny("roberta", tmp_path / "model", n_layers=2)
    encoder = open_encoder(folder, pooling="cls")
    first, second = retrieval[:2]
    fewer = RetrievalExample(second.query, second.positive, second.negatives[:2])
    loss = contrastive_loss(encoder, ExampleSet((first, fewer)))
    passages = [first.positive, *first.negatives, fewer.positive, *fewer.negatives]
    queries = encoder.encode(encoder.plan([first.query, fewer.query], "query")).double()
    likely = (queries @ encoder.encode(encoder.plan(passages, "document")).double().T / 0.05).log_softmax(dim=1)
    expected = -(likely[0, 0] + likely[1, 8]) / 2
    assert loss == pytest.approx(float(expected), abs=5e-6)  # rounding, times 20


def test_a_similarity_of_inner_products_is_not_scaled(tmp_path: Path, retrieval: tuple[RetrievalExample, ...]) -> None:
    folder = make_tiny("distilbert", tmp_path / "model", n_layers=2)
    losses = [
        contrastive_loss(open_encoder(folder, similarity=similarity), ExampleSet(retrieval, temperature=temperature))
        for similarity, temperature in (("dot", 0.05), ("dot", 5.0), ("cosine", 0.05))
    ]
    assert len({round(loss, 3) for loss in losses}) == 3


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_the_language_model_loss_is_the_published_one(
    tmp_path: Path, completions: tuple[CompletionExample, ...], kind: str
) -> None:
    folder = make_tiny(kind, tmp_path / "model", n_layers=2, head="causal")
    drop_end(folder)
    loss = language_model_loss(folder, folder, ExampleSet(completions=completions))
    assert loss == pytest.approx(published_language_model(folder, completions), abs=1e-6, rel=0)


def test_end_tokens_of_embedding_models_do_not_count_twice(
    tmp_path: Path, completions: tuple[CompletionExample, ...]
) -> None:
    folder = make_tiny("llama", tmp_path / "model", n_layers=2, head="causal")
    appended = language_model_loss(folder, folder, ExampleSet(completions=completions))
    drop_end(folder)
    assert appended == language_model_loss(folder, folder, ExampleSet(completions=completions))


def drop_end(folder: Path) -> None:
    """Make a tokenizer that opens and ends texts one that only opens them, as language models have."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    single = content["post_processor"]["single"]
    content["post_processor"]["single"] = [p for p in single if p.get("SpecialToken", {}).get("id") != "</s>"]
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "head", "found"),
    [
        ("llama", "auto", r"lack the language-model head \(lm_head\.weight\)"),
        ("gemma3_text", "causal", "see what comes after"),
        ("mpnet", "auto", "no causal language model"),
        ("bert", "mlm", "no end token"),
    ],
)
def test_what_is_no_language_model_is_refused(
    tmp_path: Path, completions: tuple[CompletionExample, ...], kind: str, head: str, found: str
) -> None:
    folder = make_tiny(kind, tmp_path / "model", n_layers=2, head=head)
    with pytest.raises(SourceError, match=found):
        language_model_loss(folder, folder, ExampleSet(completions=completions))


def test_an_input_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "model", n_layers=1, head="causal")
    example = CompletionExample("health " * 2048, "food")
    with pytest.raises(EvaluationError, match=r"2,\d+ tokens: shorten it"):
        language_model_loss(folder, folder, ExampleSet(completions=(example,)))


def test_files_are_read_and_drawn_from_by_the_seed(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    write_lines(file, [{"query": f"q{i}", "pos": [f"p{i}", "-"], "neg": [f"n{i}{k}" for k in "abc"]} for i in range(9)])
    whole = read_retrieval_examples(file, n=None, negatives=7, seed=0)
    assert [(e.query, e.positive) for e in whole] == [(f"q{i}", f"p{i}") for i in range(9)]
    assert set(whole[0].negatives) == {"n0a", "n0b", "n0c"}
    some = read_retrieval_examples(file, n=4, negatives=2, seed=0)
    assert len(some) == 4
    assert all(len(e.negatives) == 2 and {n[:2] for n in e.negatives} == {f"n{e.query[1]}"} for e in some)
    assert some == read_retrieval_examples(file, n=4, negatives=2, seed=0)
    assert some != read_retrieval_examples(file, n=4, negatives=2, seed=1)
    fingerprints = {ExampleSet(e).fingerprint for e in (whole, some)} | {ExampleSet(whole, batch_size=3).fingerprint}
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"query": "q", "pos": ["p"]}', r'jsonl:2: expected {"query": text'),
        ('{"query": "q", "pos": ["p"], "neg": []}', r"jsonl:2"),
        ('{"query": " ", "pos": ["p"], "neg": ["n"]}', r"jsonl:2"),
        ('{"query": "q", "pos": "p", "neg": ["n"]}', r"jsonl:2"),
        ('["q", "p"]', r"jsonl:2: expected a JSON object, found a list"),
        ('{"query": ', r"jsonl:2: invalid JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, found: str) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text('{"query": "q", "pos": ["p"], "neg": ["n"]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(CollectionError, match=found):
        read_retrieval_examples(file, n=None, negatives=7, seed=0)


def test_files_of_the_other_kind_and_empty_ones_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text('{"query": "q", "pos": ["p"], "neg": ["n"]}\n', encoding="utf-8")
    with pytest.raises(CollectionError, match=r'expected {"input": text'):
        read_completion_examples(file, n=None, seed=0)
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(CollectionError, match="holds no examples"):
        read_completion_examples(file, n=None, seed=0)


def judged(n: int = 12) -> Collection:
    return Collection(
        "made",
        "train",
        query_ids=[f"q{i}" for i in range(n)],
        query_texts=[f"word common{i}" for i in range(n)],
        doc_ids=[f"d{i}" for i in range(3 * n)],
        doc_texts=[f"word common{i % n} text{i}" for i in range(3 * n)],
        qrels={f"q{i}": {f"d{i}": 1, f"d{i + n}": 2, f"d{i + 2 * n}": 0} for i in range(n)},
    )


def test_examples_of_a_collection_are_its_most_relevant_and_its_hardest(tmp_path: Path) -> None:
    examples = draw_examples(judged(), n=None, negatives=3, seed=0)
    assert len(examples) == DRAWN
    for e in examples:
        number = int(e.query.removeprefix("word common"))
        assert e.positive == f"word common{number} text{number + 12}"
        assert e.negatives[0] == f"word common{number} text{number + 24}"  # judged, and not relevant
        assert len(set(e.negatives)) == 3
        assert not {f"word common{number} text{number + k}" for k in (0, 12)} & set(e.negatives)
    assert examples == draw_examples(judged(), n=5, negatives=3, seed=0)
    assert examples != draw_examples(judged(), n=5, negatives=3, seed=1)
    assert len(draw_examples(judged(), n=99, negatives=1, seed=0)) == 12


def test_a_query_without_any_negative_is_refused() -> None:
    lonely = Collection("made", "train", ["q"], ["one two"], ["d", "e"], ["one two", "three"], {"q": {"d": 1}})
    with pytest.raises(CollectionError, match=r"query 'q'.*no negative"):
        draw_examples(lonely, n=None, negatives=7, seed=0)
