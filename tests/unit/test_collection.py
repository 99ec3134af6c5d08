"""The `Collection` itself: its hash, its samples, and the real collections beside the checkout."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mergesearch.errors import CollectionError
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.formats import load_collection


def made(n: int = 20) -> Collection:
    ids = [f"q{i}" for i in range(n)]
    return Collection(
        name="made",
        split="dev",
        query_ids=ids,
        query_texts=[f"text of {q}" for q in ids],
        doc_ids=["d1", "d2", "d3"],
        doc_texts=["one", "two", "three"],
        qrels={q: {"d1": 1 + i % 3, "d2": 0} for i, q in enumerate(ids)},
        candidates={q: ["d1", "d2"] for q in ids},
    )


def reordered(c: Collection) -> Collection:
    return Collection(
        name="renamed",
        split="test",
        query_ids=c.query_ids[::-1],
        query_texts=c.query_texts[::-1],
        doc_ids=c.doc_ids[::-1],
        doc_texts=c.doc_texts[::-1],
        qrels={q: dict(reversed(c.qrels[q].items())) for q in reversed(c.query_ids)},
        candidates=c.candidates and {q: c.candidates[q][::-1] for q in c.query_ids},
    )


def test_hash_does_not_depend_on_order_or_name() -> None:
    assert reordered(made()).content_hash == made().content_hash


@pytest.mark.parametrize(
    "change",
    [
        {"query_texts": ["other", *made().query_texts[1:]]},
        {"doc_texts": ["one", "two", "3"]},
        {"doc_texts": ["two", "one", "three"]},
        {"qrels": made().qrels | {"q0": {"d1": 2, "d2": 0}}},
        {"qrels": made().qrels | {"q0": {"d1": 1}}},
        {"candidates": None},
        {"candidates": made().qrels | {"q0": ["d1"]}},
        {"exclude_same_id": False},
    ],
)
def test_hash_changes_with_all_that_may_change_a_score(change: dict[str, object]) -> None:
    assert replace(made(), **change).content_hash != made().content_hash  # type: ignore[arg-type]


def test_hash_and_sample_are_the_same_in_a_fresh_process() -> None:
    code = (
        "from tests.unit.test_collection import made;"
        "print(made().content_hash, *made().sample_queries(5, seed=1).query_ids)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [made().content_hash, *made().sample_queries(5, seed=1).query_ids]


def test_samples_nest_and_differ_by_seed_but_not_by_order() -> None:
    samples = [made().sample_queries(n, seed=1) for n in (3, 7, 15)]
    assert [len(s.query_ids) for s in samples] == [3, 7, 15]
    assert set(samples[0].query_ids) < set(samples[1].query_ids) < set(samples[2].query_ids)
    assert reordered(made()).sample_queries(7, seed=1).content_hash == samples[1].content_hash
    assert made().sample_queries(7, seed=2).query_ids != samples[1].query_ids


def test_a_sample_keeps_texts_judgements_and_corpus() -> None:
    sample = made().sample_queries(4, seed=0)
    assert sample.query_texts == [f"text of {q}" for q in sample.query_ids]
    assert sample.qrels == {q: made().qrels[q] for q in sample.query_ids}
    assert sample.candidates is not None
    assert sample.candidates.keys() == sample.qrels.keys()
    assert sample.doc_ids == made().doc_ids


def test_a_sample_larger_than_the_split_is_all_of_it_with_a_warning() -> None:
    sample = made().sample_queries(500, seed=0)
    assert sample == made()
    assert sample.warnings == ["asked for a sample of 500 queries; all 20 there are were taken"]
    assert made().sample_queries(20, seed=0).warnings == []


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(CollectionError, match="cannot sample 0 queries"):
        made().sample_queries(0, seed=0)


def test_parts_that_do_not_fit_are_refused_together() -> None:
    with pytest.raises(CollectionError) as caught:
        Collection("bad", "dev", ["q", "q"], ["text"], ["d"], ["text"], {"p": {"d": 1}})
    message = str(caught.value)
    assert "queries: 2 ids but 1 texts" in message
    assert "queries: ids are not unique" in message
    assert "qrels: must name exactly" in message


REAL = ["cosqa", "cranfield", "medquad_qa", "nfcorpus", "xquad_de", "xquad_en"]


@pytest.mark.parametrize("name", REAL)
def test_real_collections_load_whole(shared_data: Path, name: str) -> None:
    folder = shared_data / name
    documents = {}
    for line in (folder / "corpus.jsonl").read_bytes().splitlines():
        record = json.loads(line)
        documents[record["_id"]] = f"{record.get('title', '')} {record['text']}".strip()
    for path in sorted((folder / "qrels").glob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        loaded = load_collection("beir", {"folder": name}, name=name, split=path.stem, relative_to=shared_data)
        assert dict(zip(loaded.doc_ids, loaded.doc_texts, strict=True)) == documents
        flat = {(q, d): g for q, grades in loaded.qrels.items() for d, g in grades.items()}
        assert flat == {(r["query-id"], r["corpus-id"]): int(r["score"]) for r in rows}
        # Cranfield numbers queries and documents alike; its document 125 is not its query 125.
        assert loaded.exclude_same_id == (name != "cranfield")
        assert len(loaded.warnings) == (name == "cranfield")


def test_queries_of_one_language_on_the_corpus_of_another(shared_data: Path) -> None:
    options = {"folder": "xquad_de", "corpus_file": "xquad_en/corpus.jsonl"}
    loaded = load_collection("beir", options, name="de-en", split="dev", relative_to=shared_data)
    german, english = (
        load_collection("beir", {"folder": f"xquad_{c}"}, name=c, split="dev", relative_to=shared_data)
        for c in ("de", "en")
    )
    assert (loaded.query_texts, loaded.doc_texts) == (german.query_texts, english.doc_texts)


def test_a_pool_of_a_real_collection(shared_data: Path) -> None:
    full = load_collection("beir", {"folder": "nfcorpus"}, name="nf", split="dev", relative_to=shared_data)
    sample = full.sample_queries(50, seed=0)
    pool = sample.with_pool(10, seed=0)
    judged = {d for grades in sample.qrels.values() for d in grades}
    assert judged <= set(pool.doc_ids)
    assert len(judged) < len(pool.doc_ids) <= len(judged) + 500
    assert pool.qrels == sample.qrels
    texts = dict(zip(full.doc_ids, full.doc_texts, strict=True))
    assert pool.doc_texts == [texts[d] for d in pool.doc_ids]
