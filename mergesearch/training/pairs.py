"""Queries with relevant documents, and negatives for them: read, mined, and laid out for training."""

from __future__ import annotations

import contextlib
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.formats import load_collection
from mergesearch.evaluation.formats.builder import CollectionBuilder
from mergesearch.evaluation.formats.files import json_records
from mergesearch.evaluation.pool import hard_negatives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mergesearch.evaluation.collection import Collection
    from mergesearch.training.harness import Prompts

_NAMES = {
    "query": ("query", "anchor", "question"),
    "positive": ("pos", "positive", "positives", "document"),
    "negative": ("neg", "negative", "negatives"),
}
"""What jsonl files call a query, its documents and its negatives: as FlagEmbedding and sentence-transformers do."""
MARGIN = 0.05
"""A negative that a model finds must be so much less similar, relative to the positive (NV-Retriever, Moreira et al.
2024, https://arxiv.org/abs/2407.15831): what is as similar is likely relevant and not judged."""

Columns = dict[str, list[str]]
"""`query`, `document`, and `negative_1` and so on, each a text for every example."""


@dataclass(frozen=True)
class TrainingPairs:
    """A collection with the negatives that came with it.

    Attributes:
        collection: queries, their relevant documents, and the corpus that negatives are looked for in.
        negatives: query id to ids of documents that were given as negatives, best first.
    """

    collection: Collection
    negatives: dict[str, list[str]]


def read_pairs(path: Path, *, split: str = "train") -> TrainingPairs:
    """A BEIR folder's split, or a jsonl file of queries with positives and perhaps negatives.

    Lines of a file hold `query`, `pos` and perhaps `neg` (texts, or lists of texts), as FlagEmbedding's data, or
    `anchor`, `positive`, `negative` as sentence-transformers' data sets; its corpus is all its documents. Documents
    that a folder judges as not relevant are negatives.

    Raises:
        CollectionError: everything that is wrong with it.
    """
    if path.is_dir():
        collection = load_collection("beir", {"folder": str(path)}, name=path.name, split=split, relative_to=Path.cwd())
        judged = {q: [d for d, grade in grades.items() if grade == 0] for q, grades in collection.qrels.items()}
        return TrainingPairs(collection, judged)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise CollectionError([Problem("pairs are read from a BEIR folder or a .jsonl file", str(path))])
    builder = CollectionBuilder(path.name, split, exclude_same_id=False)
    ids: dict[str, str] = {}
    queries: dict[str, str] = {}
    negatives: dict[str, list[str]] = {}
    for place, record in json_records(path, builder):
        texts = {kind: _texts(record, names) for kind, names in _NAMES.items()}
        query, documents, given = texts["query"], texts["positive"], texts["negative"] or []
        if query is None or len(query) != 1 or not documents:
            found = ", ".join(record) or "nothing"
            builder.error("incomplete records", f"expected a query and positive texts ('pos'), found: {found}", place)
            continue
        query_id = queries.setdefault(query[0], f"q{len(queries)}")
        builder.add_query(query_id, query[0], place, repeats=True)
        for text in dict.fromkeys([*documents, *given]):
            doc_id = ids.setdefault(text.strip(), f"d{len(ids)}")
            builder.add_document(doc_id, text, place, repeats=True)
        for text in documents:
            builder.add_judgement(query_id, ids[text.strip()], 1, place)
        negatives.setdefault(query_id, []).extend(ids[text.strip()] for text in given)
    collection = builder.build()
    return TrainingPairs(collection, {q: [*dict.fromkeys(negatives[q])] for q in collection.query_ids})


def _texts(record: dict[str, Any], names: Sequence[str]) -> list[str] | None:
    found = next((record[name] for name in names if name in record), None)
    texts = [found] if isinstance(found, str) else found
    return texts if isinstance(texts, list) and all(isinstance(t, str) and t.strip() for t in texts) else None


def mine_bm25(pairs: TrainingPairs, k: int, seed: int) -> dict[str, list[str]]:
    """Query id to the k documents that BM25 ranks highest among those not known as relevant, best first."""
    return hard_negatives(pairs.collection, k, seed)


def mine_with_model(
    pairs: TrainingPairs, k: int, model: Any, prompts: Prompts, batch_size: int
) -> dict[str, list[str]]:
    """Query id to the k most similar documents that are not known as relevant and not nearly as similar as those are.

    Args:
        pairs: the queries and their documents.
        k: negatives per query; some find fewer.
        model: a SentenceTransformer.
        prompts: what it puts before queries and documents.
        batch_size: texts at a time.
    """
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    collection = pairs.collection
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    id_of = dict(zip(collection.doc_texts, collection.doc_ids, strict=True))
    queries = dict(zip(collection.query_ids, collection.query_texts, strict=True))
    relevant = [(q, d) for q, grades in collection.qrels.items() for d, grade in grades.items() if grade > 0]
    dataset = Dataset.from_dict(
        {"anchor": [queries[q] for q, _ in relevant], "positive": [texts[d] for _, d in relevant]}
    )
    with contextlib.redirect_stderr(io.StringIO()):  # bars of its own
        mined = mine_hard_negatives(
            dataset,
            model,
            corpus=collection.doc_texts,
            num_negatives=k,
            relative_margin=MARGIN,
            query_prompt=prompts.get("query"),
            corpus_prompt=prompts.get("document"),
            output_format="triplet",
            batch_size=batch_size,
            verbose=False,
        )
    found: dict[str, list[str]] = {}
    for query, negative in zip(mined["anchor"], mined["negative"], strict=True):
        found.setdefault(query, []).append(id_of[negative])
    return {q: [*dict.fromkeys(found.get(text, []))][:k] for q, text in queries.items()}


def lay_out(pairs: TrainingPairs, mined: dict[str, list[str]], *, negatives: int, positives: int, seed: int) -> Columns:
    """Examples of a query, a relevant document and so many negatives.

    Given negatives come before mined ones; those of a query that has too few are used again, and a query that has none
    gets documents drawn at random.

    Args:
        pairs: what was read.
        mined: further negatives, by query id.
        negatives: of each example.
        positives: examples of a query at most, each with another relevant document: a query with a hundred would crowd
            out the others.
        seed: of what is drawn.
    """
    collection = pairs.collection
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    columns: Columns = {name: [] for name in column_names(negatives)}
    for query, text in zip(collection.query_ids, collection.query_texts, strict=True):
        draw = random.Random(f"{seed} {query}")  # noqa: S311 - sampling, no secret
        relevant = sorted(d for d, grade in collection.qrels[query].items() if grade > 0)
        known = [
            d for d in dict.fromkeys([*pairs.negatives.get(query, []), *mined.get(query, [])]) if d not in relevant
        ]
        if negatives and not known:
            known = _drawn(collection.doc_ids, negatives, {*relevant, query}, draw)
        for document in draw.sample(relevant, min(positives, len(relevant))):
            row = [text, texts[document], *(texts[known[i % len(known)]] for i in range(negatives))]
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return columns


def column_names(negatives: int) -> list[str]:
    """The columns of examples with so many negatives."""
    return ["query", "document", *(f"negative_{i + 1}" for i in range(negatives))]


def _drawn(doc_ids: list[str], n: int, barred: set[str], draw: random.Random) -> list[str]:
    free = [d for d in draw.sample(doc_ids, min(len(doc_ids), n + len(barred))) if d not in barred]
    if not free:
        raise CollectionError(["every document is relevant to a query, so it has no negatives; give --negatives 0"])
    return free[:n]


def store_columns(columns: Columns, file: Path) -> None:
    """Write examples so that they appear whole or not at all."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(columns, ensure_ascii=False), encoding="utf-8")
    draft.rename(file)
