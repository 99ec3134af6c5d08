"""What a collection's dev sample and training pairs are made of."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from pathlib import Path
from typing import Literal

from mergesearch.errors import CollectionError, Problem
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.formats import load_collection
from mergesearch.evaluation.formats.builder import CollectionBuilder
from mergesearch.evaluation.formats.documents import document_files, each_document
from mergesearch.evaluation.pool import hard_negatives

PairKind = Literal["train", "titles", "docstrings"]
"""Where training pairs come from: judged queries of the train split, or the documents alone (title and text, or the
first sentence of a Python function's docstring and the function without it)."""

_DOCSTRING = re.compile(r'[rRuUbB]{0,2}("""|\'\'\')(.*?)\1', re.DOTALL)
_LEAST_WORDS = 3


def read_split(folder: Path, split: str) -> Collection:
    """One split of a BEIR folder.

    Raises:
        CollectionError: everything that is wrong with it.
    """
    return load_collection("beir", {"folder": str(folder)}, name=folder.name, split=split, relative_to=Path.cwd())


def read_titles(folder: Path) -> list[tuple[str, str]]:
    """Title and text of every document of a BEIR folder, in the order of the file; a title may be empty.

    Raises:
        CollectionError: everything that is wrong with it.
    """
    builder = CollectionBuilder(folder.name, "all")
    found = [(d.title.strip(), d.text.strip()) for d in each_document(document_files([folder]), builder)]
    if problems := builder.problems():
        raise CollectionError(problems)
    return found


def training_pairs(folder: Path, kind: PairKind, seed: int) -> list[tuple[str, str]]:
    """Queries and documents to fine-tune on; judgements of dev and test are not read.

    Published splits may share a few queries word for word (NFCorpus's do), which are then trained on as published.

    Args:
        folder: a collection in BEIR layout.
        kind: see `PairKind`. Of a judged query one relevant document is drawn, lest a query with a hundred crowd out
            the others.
        seed: of what is drawn.

    Raises:
        CollectionError: the collection holds no such pairs.
    """
    if kind == "train":
        train = read_split(folder, "train")
        documents = dict(zip(train.doc_ids, train.doc_texts, strict=True))
        draw = random.Random(seed)  # noqa: S311 - sampling, no secret
        found = [
            (text, documents[draw.choice(sorted(d for d, grade in train.qrels[q].items() if grade > 0))])
            for q, text in zip(train.query_ids, train.query_texts, strict=True)
        ]
    elif kind == "titles":
        found = [(title, text) for title, text in read_titles(folder) if title and text]
    else:
        found = [pair for _, text in read_titles(folder) if (pair := split_docstring(text)) is not None]
    if not found:
        raise CollectionError([Problem(f"holds no pairs of the kind {kind!r}", str(folder))])
    return list(dict.fromkeys(found))


def split_docstring(code: str) -> tuple[str, str] | None:
    """The first sentence of the first docstring, and the code without the docstring; None where there is none."""
    found = _DOCSTRING.search(code)
    if found is None:
        return None
    paragraph = " ".join(found[2].strip().split("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?])\s|\s:\w", paragraph)[0].strip()
    rest = f"{code[: found.start()]}{code[found.end() :]}".strip()
    return (sentence, rest) if len(sentence.split()) >= _LEAST_WORDS and rest else None


def dev_sample(folder: Path, *, queries: int, judged: int, negatives: int, seed: int) -> Collection:
    """A part of the dev split that is cheap to score merges on.

    Args:
        folder: a collection in BEIR layout.
        queries: drawn with the seed.
        judged: relevant documents of a query that are kept at most, the highest grades first and then by the hash of
            seed and id. What another query brings in keeps its judgement.
        negatives: BM25 negatives per query.
        seed: of what is drawn.

    Returns:
        The queries on the pool of these documents.
    """
    sample = read_split(folder, "dev").sample_queries(queries, seed)
    hard = hard_negatives(sample, negatives, seed) if negatives else {}
    kept: set[str] = set()
    for query, grades in sample.qrels.items():
        relevant = [d for d, grade in grades.items() if grade > 0]
        kept.update(sorted(relevant, key=lambda d: (-grades[d], _hash(seed, d)))[:judged])
        kept.update(hard.get(query, ()))
    return sample.with_documents(kept)


def _hash(seed: int, doc_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{doc_id}".encode()).digest()


def write_beir(collection: Collection, folder: Path) -> None:
    """Leave a collection as a BEIR folder, whole or not at all; a folder that is there stays."""
    if folder.is_dir():
        return
    draft = folder.with_name(f".{folder.name}-draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "qrels").mkdir(parents=True)
    for name, ids, texts in (
        ("corpus", collection.doc_ids, collection.doc_texts),
        ("queries", collection.query_ids, collection.query_texts),
    ):
        lines = [json.dumps({"_id": i, "text": text}, ensure_ascii=False) for i, text in zip(ids, texts, strict=True)]
        (draft / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f"{q}\t{d}\t{grade}" for q, grades in collection.qrels.items() for d, grade in grades.items()]
    qrels = "\n".join(["query-id\tcorpus-id\tscore", *rows])
    (draft / "qrels" / f"{collection.split}.tsv").write_text(qrels + "\n", encoding="utf-8")
    draft.rename(folder)
