"""Pseudo-queries: what becomes a query, what is left of the document, and which split it is in."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mergesearch.errors import CollectionError
from mergesearch.evaluation.formats import load_collection
from mergesearch.evaluation.formats.pseudo import MOST_SHARED

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection

DOCUMENTS = [
    ("a", "Statins and survival", "Recent studies say much. We looked again."),
    ("b", "Wings in a slipstream .", "wings in a slipstream. an experimental study was made . it shows little ."),
    ("c", "Letter", "A short title makes no query of its own. But there is text."),
    ("d", "", "Dr. Jones et al. found approx. three percent. The rest did not."),
    ("e", "Only a title here", ""),
    ("f", "", "橋は川を渡る、とても長い橋であると言われている。次の文。"),
    ("g", "statins AND  survival", "Another paper of the same name. It goes on."),
    ("h", "Something without sentences", "one line that has no end"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"_id": i, "title": title, "text": text} for i, title, text in DOCUMENTS]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return tmp_path


def load(folder: Path, split: str = "dev", **options: object) -> Collection:
    given = {"documents": ".", "test_share": 0, **options}
    return load_collection("pseudo", given, name="tiny", split=split, relative_to=folder)


def made(collection: Collection) -> dict[str, tuple[str, dict[str, int]]]:
    queries = zip(collection.query_ids, collection.query_texts, strict=True)
    return {q: (text, collection.qrels[q]) for q, text in queries}


def test_titles_become_queries_and_leave_all_documents(folder: Path) -> None:
    collection = load(folder)
    assert made(collection) == {
        "title:a": ("Statins and survival", {"a": 1, "g": 1}),  # one query for documents of one title
        "title:b": ("Wings in a slipstream .", {"b": 1}),
        "title:h": ("Something without sentences", {"h": 1}),
    }
    assert dict(zip(collection.doc_ids, collection.doc_texts, strict=True)) == {
        "a": "Recent studies say much. We looked again.",
        "b": "an experimental study was made . it shows little .",  # its text repeated the title
        "c": "A short title makes no query of its own. But there is text.",
        "d": DOCUMENTS[3][2],
        "e": "Only a title here",
        "f": DOCUMENTS[5][2],
        "g": "Another paper of the same name. It goes on.",
        "h": "one line that has no end",
    }


def test_first_sentences_become_queries_and_titles_stay(folder: Path) -> None:
    collection = load(folder, queries_from="first_sentences")
    assert made(collection) == {
        "sentence:a": ("Recent studies say much.", {"a": 1}),
        "sentence:b": ("wings in a slipstream. an experimental study was made .", {"b": 1}),
        "sentence:c": ("A short title makes no query of its own.", {"c": 1}),
        "sentence:d": ("Dr. Jones et al. found approx. three percent.", {"d": 1}),
        "sentence:f": ("橋は川を渡る、とても長い橋であると言われている。", {"f": 1}),
        "sentence:g": ("Another paper of the same name.", {"g": 1}),
    }
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    assert texts["a"] == "Statins and survival We looked again."
    assert texts["d"] == "The rest did not."
    assert texts["h"] == "Something without sentences one line that has no end"


def test_every_query_is_in_one_split_and_stays_there(tmp_path: Path) -> None:
    lines = ["id\ttitle\ttext", *(f"d{i}\ttitle number {i}\tand a text" for i in range(80))]
    (tmp_path / "many.tsv").write_text("\n".join(lines), encoding="utf-8")
    many = {"documents": "many.tsv"}
    whole = set(made(load(tmp_path, **many)))
    assert len(whole) == 80
    tests = []
    for share in (0.2, 0.5):
        dev, test = (load(tmp_path, split, **many, test_share=share) for split in ("dev", "test"))
        assert set(made(dev)) | set(made(test)) == whole
        assert not set(made(dev)) & set(made(test))
        assert dev.doc_texts == test.doc_texts
        tests.append(set(made(test)))
    assert tests[0] < tests[1]  # a larger share moves queries one way only
    with pytest.raises(CollectionError, match="none of 80 pseudo-queries is in split 'test': change `test_share`"):
        load(tmp_path, "test", **many)


def test_what_many_documents_share_makes_no_query(tmp_path: Path) -> None:
    lines = [f"{i}\tThis opens every document. What follows is number {i}." for i in range(MOST_SHARED + 1)]
    (tmp_path / "same.tsv").write_text("\n".join([*lines, "z\tThis opens one of them. And goes on."]), encoding="utf-8")
    collection = load(tmp_path, documents="same.tsv", queries_from="first_sentences")
    assert made(collection) == {"sentence:z": ("This opens one of them.", {"z": 1})}
    assert collection.warnings[0].startswith("1 first sentences of more than 5 documents made no query")


def test_queries_that_a_language_model_wrote_find_their_documents(folder: Path) -> None:
    whole = f"{DOCUMENTS[0][1]} {DOCUMENTS[0][2]}"
    lines = [
        {"query": "do statins help", "pos": [whole], "synthetic": "queries", "by": "a model"},
        {"query": "doctor jones", "pos": [DOCUMENTS[3][2]]},
    ]
    file = folder / "queries.txt"
    file.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    collection = load(folder, queries_file="queries.txt")
    assert made(collection) == {
        "query:1": ("do statins help", {"a": 1}),
        "query:2": ("doctor jones", {"d": 1}),
    }
    assert collection.doc_texts[0] == whole  # nothing of it was taken
    file.write_text(json.dumps({"query": "of other documents", "pos": ["gone"]}) + '\n{"text": "no query"}\n')
    with pytest.raises(CollectionError) as caught:
        load(folder, queries_file="queries.txt")
    assert "queries.txt:1: 'of other documents' was written for a document that is not among these" in str(caught.value)
    assert "queries.txt:2: expected 'query' and 'pos'" in str(caught.value)


def test_documents_without_titles_are_pointed_to_their_sentences(folder: Path) -> None:
    (folder / "plain.txt").write_text("One line without an end\n", encoding="utf-8")
    with pytest.raises(CollectionError, match="try `queries_from: first_sentences`"):
        load(folder, documents="plain.txt")
    with pytest.raises(CollectionError, match="try `queries_from: titles`"):
        load(folder, documents="plain.txt", queries_from="first_sentences")
    with pytest.raises(CollectionError, match="there is no such file or folder"):
        load(folder, documents="nowhere")
