"""A few labelled examples that sources are judged by before a search: read from a file, or drawn from a collection.

Files have one JSON object a line, as FlagEmbedding's: `{"query": "…", "pos": ["…"], "neg": ["…"]}` for retrievers,
`{"input": "…", "output": "…"}` for language models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.formats.builder import CollectionBuilder
from mergesearch.evaluation.formats.files import json_records

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection
    from mergesearch.evaluation.formats.builder import Place

T = TypeVar("T")
DRAWN = 5
"""Examples that are drawn from a collection by default: enough, by the paper's measurements."""


@dataclass(frozen=True)
class RetrievalExample:
    """A query, a text that answers it, and texts that do not."""

    query: str
    positive: str
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class CompletionExample:
    """A text, and how a language model should go on with it."""

    input: str
    output: str


@dataclass(frozen=True)
class ExampleSet:
    """Examples, and how the loss on them is computed; see `mergesearch.evaluation.losses`.

    Attributes:
        retrieval: for the contrastive loss, in the order in which they are batched.
        completions: for the language-model loss, likewise. One of the two is empty.
        batch_size: examples per batch; negatives are shared within one.
        temperature: what similarities are divided by.
        prompts: `query` and `document` prompts; None where the template's own is used.
    """

    retrieval: tuple[RetrievalExample, ...] = ()
    completions: tuple[CompletionExample, ...] = ()
    batch_size: int = 2
    temperature: float = 0.05
    prompts: Mapping[str, str | None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.retrieval) + len(self.completions)

    @property
    def loss(self) -> str:
        """Which loss is computed, for people."""
        return "contrastive" if self.retrieval else "language-model"

    def describe(self) -> dict[str, Any]:
        """What decides the loss of a model, in plain JSON types, texts as one hash."""
        texts = [*map(asdict, self.retrieval), *map(asdict, self.completions)]
        common = {
            "loss": self.loss,
            "examples": len(self),
            "content": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            "batch_size": self.batch_size,
        }
        return {**common, "temperature": self.temperature, "prompts": dict(self.prompts)} if self.retrieval else common

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `describe`."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()


def read_retrieval_examples(path: Path, *, n: int | None, negatives: int, seed: int) -> tuple[RetrievalExample, ...]:
    """Queries with positives, of which the first is taken, and negatives.

    Args:
        path: a file with one JSON object a line.
        n: how many to draw; None for all.
        negatives: how many of an example's negatives to draw; one with fewer keeps them all.
        seed: where drawing starts from.

    Raises:
        CollectionError: listing every problem with its line.
    """
    examples = _some(_read(path, _retrieval), n, seed)
    return tuple(replace(e, negatives=tuple(_draw(e.negatives, negatives, seed, str))) for e in examples)


def read_completion_examples(path: Path, *, n: int | None, seed: int) -> tuple[CompletionExample, ...]:
    """Inputs and outputs; arguments and errors are those of `read_retrieval_examples`."""
    return _some(_read(path, _completion), n, seed)


def draw_examples(collection: Collection, *, n: int | None, negatives: int, seed: int) -> tuple[RetrievalExample, ...]:
    """Examples from a judged collection: queries, for each its most relevant document, and BM25 negatives.

    Queries are drawn as `Collection.sample_queries` does it; of equally relevant documents the seed decides.

    Args:
        collection: one split of it.
        n: how many queries; None for `DRAWN`.
        negatives: BM25 negatives per query, the best-scored; a query with fewer matching documents gets fewer.
        seed: where drawing starts from.

    Raises:
        CollectionError: queries that share no word with a document that is not relevant to them.
    """
    from mergesearch.evaluation.pool import hard_negatives  # brings bm25s, which few need

    sample = collection.sample_queries(min(n or DRAWN, len(collection.query_ids)), seed)
    texts = dict(zip(sample.doc_ids, sample.doc_texts, strict=True))
    found = hard_negatives(sample, negatives, seed)
    lonely = [query_id for query_id in sample.query_ids if not found[query_id]]
    if lonely:
        message = "no document that is not relevant shares a word with the query: there is no negative for it"
        raise CollectionError(Problem(message, f"query {query_id!r}") for query_id in lonely)
    examples = []
    for query_id, query in zip(sample.query_ids, sample.query_texts, strict=True):
        grades = sample.qrels[query_id]
        highest = [d for d, grade in grades.items() if grade == max(grades.values())]
        (positive,) = _draw(highest, 1, seed, str)
        examples.append(RetrievalExample(query, texts[positive], tuple(texts[d] for d in found[query_id])))
    return tuple(examples)


def _read(path: Path, make: Callable[[Mapping[str, Any], Place, CollectionBuilder], T | None]) -> list[T]:
    problems = CollectionBuilder(path.name, "examples")
    made = [make(record, place, problems) for place, record in json_records(path, problems)]
    if not made:
        problems.error("no examples", "holds no examples, one JSON object a line", str(path))
    if problems.problems():
        raise CollectionError(problems.problems())
    return [example for example in made if example is not None]


def _some(examples: Sequence[T], n: int | None, seed: int) -> tuple[T, ...]:
    return tuple(examples if n is None or n >= len(examples) else _draw(examples, n, seed, repr))


def _draw(items: Iterable[T], n: int, seed: int, name: Callable[[T], str]) -> list[T]:
    """`n` items, or all there are, in the order of the hashes of seed and name."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}\0{name(item)}".encode()).digest())[:n]


def _retrieval(record: Mapping[str, Any], place: Place, problems: CollectionBuilder) -> RetrievalExample | None:
    query, positives, negatives = (record.get(name) for name in ("query", "pos", "neg"))
    if _is_text(query) and _are_texts(positives) and _are_texts(negatives):
        return RetrievalExample(query, positives[0], tuple(negatives))
    found = f"found {json.dumps(record, ensure_ascii=False)[:120]}"
    problems.error("bad examples", f'expected {{"query": text, "pos": [text, …], "neg": [text, …]}}, {found}', place)
    return None


def _completion(record: Mapping[str, Any], place: Place, problems: CollectionBuilder) -> CompletionExample | None:
    prompt, output = record.get("input"), record.get("output")
    if _is_text(prompt) and _is_text(output):
        return CompletionExample(prompt, output)
    found = f"found {json.dumps(record, ensure_ascii=False)[:120]}"
    problems.error("bad examples", f'expected {{"input": text, "output": text}}, {found}', place)
    return None


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))
