"""Everything that may be wrong with a collection, and what is said about it."""

from __future__ import annotations

import gzip
import json
import os
from typing import TYPE_CHECKING

import pytest

from mergesearch.errors import CollectionError
from mergesearch.evaluation.formats import load_collection
from mergesearch.evaluation.formats.builder import SHOWN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection

HEADER = "query-id\tcorpus-id\tscore"


class Folder:
    """A sound BEIR folder, to be spoilt one file at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents("one", "two", "three")
        self.queries("first", "second")
        self.qrels(HEADER, "q1\td1\t1", "q2\td2\t2")

    def write(self, name: str, content: bytes) -> None:
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)

    def lines(self, name: str, *lines: str) -> None:
        self.write(name, "".join(f"{line}\n" for line in lines).encode())

    def documents(self, *texts: str) -> None:
        self.lines("corpus.jsonl", *(json.dumps({"_id": f"d{i}", "text": t}) for i, t in enumerate(texts, 1)))

    def queries(self, *texts: str) -> None:
        self.lines("queries.jsonl", *(json.dumps({"_id": f"q{i}", "text": t}) for i, t in enumerate(texts, 1)))

    def qrels(self, *lines: str) -> None:
        self.lines("qrels/dev.tsv", *lines)

    def load(self, split: str = "dev", **options: object) -> Collection:
        return load_collection("beir", {"folder": ".", **options}, name="mine", split=split, relative_to=self.path)

    def errors(self, split: str = "dev", **options: object) -> str:
        with pytest.raises(CollectionError) as caught:
            self.load(split, **options)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_the_sound_folder_loads_without_a_word(folder: Folder) -> None:
    loaded = folder.load()
    assert loaded.warnings == []
    assert loaded.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    assert loaded.exclude_same_id is True


# Ids


def test_qrels_that_name_unknown_ids(folder: Folder) -> None:
    folder.qrels(HEADER, "q1\td1\t1", "q9\td1\t1", "q2\td9\t1", "q2\td2\t1")
    message = folder.errors()
    assert f"{folder.path}/qrels/dev.tsv:3: unknown query id 'q9', not among the 2 queries" in message
    assert f"{folder.path}/qrels/dev.tsv:4: unknown document id 'd9', not among the 3 documents" in message
    assert "unknown_ids: drop" in message


def test_unknown_ids_can_be_dropped_with_a_warning(folder: Folder) -> None:
    folder.qrels(HEADER, "q1\td1\t1", "q9\td1\t1", "q2\td9\t1", "q2\td2\t1", "q1\td8\t1")
    loaded = folder.load(unknown_ids="drop")
    assert loaded.qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}}
    assert [w.split(", first")[0] for w in sorted(loaded.warnings)] == [
        "1 judgements or candidates of an unknown query dropped",
        "2 judgements or candidates of an unknown document dropped",
    ]


def test_duplicate_ids(folder: Folder) -> None:
    folder.lines(
        "corpus.jsonl",
        '{"_id": "d1", "text": "one"}',
        '{"_id": "d2", "text": "two"}',
        '{"_id": "d1", "text": "uno"}',
    )
    folder.lines(
        "queries.jsonl",
        '{"_id": "q1", "text": "a"}',
        '{"_id": "q2", "text": "b"}',
        '{"_id": "q2", "text": "c"}',
    )
    message = folder.errors()
    assert "corpus.jsonl:3: document id 'd1' was given to another document on line 1" in message
    assert "queries.jsonl:3: query id 'q2' was given to another query on line 2" in message


def test_the_same_record_twice_is_read_once_with_a_warning(folder: Folder) -> None:
    folder.lines("corpus.jsonl", *(['{"_id": "d1", "text": "one"}'] * 3), '{"_id": "d2", "text": "two"}')
    folder.qrels(HEADER, "q1\td1\t1", "q2\td2\t2", "q2\td2\t2")
    loaded = folder.load()
    assert loaded.doc_ids == ["d1", "d2"]
    assert len(loaded.warnings) == 2
    assert loaded.warnings[0].startswith("2 repeated documents")


def test_documents_with_equal_texts_and_different_ids_are_fine(folder: Folder) -> None:
    folder.documents("same", "same")
    assert folder.load().warnings == []


def test_records_without_ids(folder: Folder) -> None:
    folder.lines("corpus.jsonl", '{"_id": " ", "text": "one"}', '{"text": "two"}', '{"_id": null, "text": "x"}')
    folder.qrels(HEADER, "\td1\t1")
    message = folder.errors()
    assert "corpus.jsonl:1: the document has no id" in message
    assert "corpus.jsonl:2: the document has no '_id'; found: text" in message
    assert "corpus.jsonl:3: '_id' must be text, found None" in message
    assert "dev.tsv:2: the query has no id" in message


def test_numbers_serve_as_ids(folder: Folder) -> None:
    folder.lines("corpus.jsonl", '{"_id": 1, "text": "one"}')
    folder.lines("queries.jsonl", '{"_id": 7, "text": "first"}')
    folder.qrels(HEADER, "7\t1\t1")
    assert folder.load().qrels == {"7": {"1": 1}}


# Judgements


@pytest.mark.parametrize("grade", ["0", "-1"])
def test_no_relevant_documents_at_all(folder: Folder, grade: str) -> None:
    folder.qrels(HEADER, f"q1\td1\t{grade}", f"q2\td2\t{grade}")
    assert "no query has a relevant document: none of the 2 judgements of split 'dev'" in folder.errors()


def test_dropping_all_judgements_is_no_way_out(folder: Folder) -> None:
    folder.qrels(HEADER, "q8\td1\t1", "q9\td2\t1")
    assert "no query has a relevant document" in folder.errors(unknown_ids="drop")


def test_a_query_without_relevant_documents_is_left_out_with_a_warning(folder: Folder) -> None:
    folder.qrels(HEADER, "q1\td1\t1", "q2\td2\t0")
    loaded = folder.load()
    assert loaded.query_ids == ["q1"]
    assert loaded.warnings == ["1 judged queries without a relevant document left out, first: 'q2'"]


def test_negative_grades_count_as_zero_and_zeros_are_kept(folder: Folder) -> None:
    folder.qrels(HEADER, "q1\td1\t1", "q1\td2\t-1", "q1\td3\t0", "q2\td2\t2.0")
    assert folder.load().qrels == {"q1": {"d1": 1, "d2": 0, "d3": 0}, "q2": {"d2": 2}}


@pytest.mark.parametrize("grade", ["yes", "1.5", "nan", "inf", ""])
def test_grades_that_are_no_whole_numbers(folder: Folder, grade: str) -> None:
    folder.qrels(HEADER, "q1\td1\t1", f"q2\td2\t{grade}")
    assert f"dev.tsv:3: the grade '{grade}' is not a whole number" in folder.errors()


def test_contradicting_judgements(folder: Folder) -> None:
    folder.qrels(HEADER, "q1\td1\t1", "q2\td2\t1", "q1\td1\t2")
    assert "dev.tsv:4: query 'q1', document 'd1' was judged 1 on line 2 and is judged 2 here" in folder.errors()


def test_a_missing_header(folder: Folder) -> None:
    folder.qrels("q1\td1\t1", "q2\td2\t2")
    message = folder.errors()
    assert "dev.tsv:1: the header is missing: the first line, 'q1\\td1\\t1', looks like a judgement" in message
    assert folder.load(qrels_header=False).qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


def test_a_header_where_none_was_announced(folder: Folder) -> None:
    assert "the grade 'score' is not a whole number" in folder.errors(qrels_header=False)


def test_headers_may_name_columns_in_another_order_or_otherwise(folder: Folder) -> None:
    folder.qrels("corpus-id\tscore\tquery-id", "d1\t1\tq1", "d2\t2\tq2")
    assert folder.load().qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    folder.qrels("qid\tpid\trelevance", "q1\td1\t1", "q2\td2\t2")
    assert folder.load().qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


def test_qrels_in_another_format(folder: Folder) -> None:
    folder.qrels("q1 0 d1 1", "q2 0 d2 1")
    message = folder.errors()
    assert "dev.tsv:1: expected query-id, corpus-id, score separated by tabs, found no tabs" in message
    assert "format 'trec'" in message


def test_a_missing_split_names_those_there_are(folder: Folder) -> None:
    folder.lines("qrels/test.tsv", HEADER, "q1\td1\t1")
    assert "there is no split 'train'; splits there are: dev, test" in folder.errors(split="train")


# Texts


def test_empty_documents(folder: Folder) -> None:
    folder.documents("one", "  ", "three")
    message = folder.errors()
    assert "corpus.jsonl:2: document 'd2' is empty (no title, no text)" in message
    assert "`empty_documents` to `drop` or `keep`" in message


def test_empty_documents_dropped_or_kept_with_a_warning(folder: Folder) -> None:
    folder.documents("one", "", "three")
    folder.qrels(HEADER, "q1\td1\t1", "q2\td2\t2", "q2\td3\t1")
    dropped = folder.load(empty_documents="drop")
    assert (dropped.doc_ids, dropped.qrels["q2"]) == (["d1", "d3"], {"d3": 1})
    kept = folder.load(empty_documents="keep")
    assert (kept.doc_texts, kept.qrels["q2"]) == (["one", "", "three"], {"d2": 2, "d3": 1})
    assert [len(c.warnings) for c in (dropped, kept)] == [1, 1]


def test_a_title_alone_is_not_empty(folder: Folder) -> None:
    records = [{"_id": "d1", "title": "Title", "text": ""}, {"_id": "d2", "title": "", "text": "text"}]
    records.append({"_id": "d3", "title": "Title", "text": "and text"})
    folder.lines("corpus.jsonl", *map(json.dumps, records))
    assert folder.load().doc_texts == ["Title", "text", "Title and text"]


def test_empty_queries_matter_only_when_they_are_judged(folder: Folder) -> None:
    folder.queries("first", "second", "")
    assert folder.load().query_ids == ["q1", "q2"]
    folder.queries("first", "")
    assert "queries.jsonl:2: query 'q2' is judged but has no text" in folder.errors()


def test_wrong_encodings(folder: Folder) -> None:
    folder.write("corpus.jsonl", b'{"_id": "d1", "text": "ok"}\n' + '{"_id": "d2", "text": "é"}\n'.encode("latin1"))
    folder.write("queries.jsonl", '{"_id": "q1", "text": "a"}\n'.encode("utf-16"))
    message = folder.errors()
    assert "corpus.jsonl:2: byte 24 of the line is 0xe9, which is not UTF-8" in message
    assert "iconv -f latin1 -t utf-8 corpus.jsonl" in message
    assert "queries.jsonl:1: the file is UTF-16, expected UTF-8" in message


def test_characters_cut_in_two(folder: Folder) -> None:
    folder.lines("corpus.jsonl", '{"_id": "d1", "text": "one \\ud83d"}', '{"_id": "d2", "text": "\\ud83d\\ude00"}')
    message = folder.errors()
    assert "corpus.jsonl:1: document 'd1' holds '\\ud83d', half of a character" in message
    assert "corpus.jsonl:2" not in message


def test_byte_order_marks_windows_line_ends_and_unicode_separators_are_harmless(folder: Folder) -> None:
    line = json.dumps({"_id": "d1", "text": "one\u2028line\u0085only"}, ensure_ascii=False)
    folder.write("corpus.jsonl", b"\xef\xbb\xbf" + f'{line}\r\n\r\n{{"_id": "d2", "text": "two"}}'.encode())
    folder.write("qrels/dev.tsv", f"{HEADER}\r\nq1\td1\t1\r\nq2\td2\t2\r\n".encode())
    loaded = folder.load()
    assert loaded.doc_texts == ["one\u2028line\u0085only", "two"]
    assert loaded.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}


# Files


def test_malformed_lines_are_named(folder: Folder) -> None:
    folder.lines(
        "corpus.jsonl",
        '{"_id": "d1", "text": "one"}',
        '{"_id": "d2", "text"',
        '["d3"]',
        '{"_id": "d4", "text": 5}',
    )
    message = folder.errors()
    assert "corpus.jsonl:2: invalid JSON at column 21" in message
    assert "corpus.jsonl:3: expected a JSON object, found a list" in message
    assert "corpus.jsonl:4: 'text' must be text, found a int" in message
    assert "unknown document" not in message  # d2 is unknown only because its line could not be read


def test_all_missing_files_are_named_at_once(folder: Folder) -> None:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"):
        (folder.path / name).unlink()
    message = folder.errors()
    assert "corpus.jsonl: there is no such file" in message
    assert "queries.jsonl: there is no such file" in message
    assert "there is no split 'dev'; splits there are: none" in message


def test_a_missing_folder(folder: Folder) -> None:
    assert f"{folder.path}/absent: there is no such folder" in folder.errors(folder="absent")


@pytest.mark.parametrize(
    ("name", "what"),
    [("corpus.jsonl", "documents"), ("queries.jsonl", "queries"), ("qrels/dev.tsv", "judgements")],
)
def test_empty_files(folder: Folder, name: str, what: str) -> None:
    folder.write(name, b"")
    assert f"there are no {what}" in folder.errors()


def test_compressed_files_are_read_and_truncated_ones_reported(folder: Folder) -> None:
    plain = (folder.path / "corpus.jsonl").read_bytes()
    (folder.path / "corpus.jsonl").unlink()
    folder.write("corpus.jsonl.gz", gzip.compress(plain))
    assert folder.load().doc_texts == ["one", "two", "three"]
    folder.write("corpus.jsonl.gz", gzip.compress(plain)[:-10])
    assert "corpus.jsonl.gz: cannot be read" in folder.errors()
    folder.write("corpus.jsonl.gz", plain)
    assert "corpus.jsonl.gz: cannot be read" in folder.errors()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_files_that_may_not_be_read(folder: Folder) -> None:
    (folder.path / "corpus.jsonl").chmod(0)
    assert "corpus.jsonl: cannot be read" in folder.errors()


def test_a_thousand_faults_of_one_kind_do_not_hide_the_others(folder: Folder) -> None:
    folder.qrels(HEADER, "q1\td1\t1", *(f"q1\tx{i}\t1" for i in range(1000)), "q9\td1\t1")
    message = folder.errors()
    assert message.count("unknown document id '") == SHOWN
    assert f"… and {1000 - SHOWN} more unknown document ids" in message
    assert "unknown query id 'q9'" in message


# Documents that carry the query's id


@pytest.mark.parametrize(
    ("text", "given", "excluded"),
    [
        (lambda i: f"A title. Query text  {i} and more", None, True),
        (lambda i: f"something else {i}", None, False),
        (lambda i: f"something else {i}", True, True),
        (lambda i: f"A title. Query text {i}", False, False),
    ],
)
def test_whether_a_document_with_the_id_of_the_query_is_ranked(
    folder: Folder, text: Callable[[int], str], given: bool | None, excluded: bool
) -> None:
    ids = range(1, 6)
    folder.lines("corpus.jsonl", *(json.dumps({"_id": f"{i}", "text": text(i)}) for i in ids))
    folder.lines("queries.jsonl", *(json.dumps({"_id": f"{i}", "text": f"query text {i}"}) for i in ids))
    folder.qrels(HEADER, "1\t2\t1", "2\t3\t1", "3\t1\t1")
    loaded = folder.load(exclude_same_id=given)
    assert loaded.exclude_same_id is excluded
    assert len(loaded.warnings) == (given is None and not excluded)


def test_relevant_documents_that_can_never_be_ranked_are_told_of(folder: Folder) -> None:
    folder.lines("corpus.jsonl", '{"_id": "q1", "text": "first"}', '{"_id": "d2", "text": "two"}')
    folder.qrels(HEADER, "q1\tq1\t1", "q2\td2\t1")
    assert "relevant documents with their query's id" in folder.load().warnings[0]


# Options


def test_options_are_checked_together(folder: Folder) -> None:
    message = folder.errors(foldr="x", unknown_ids="ignore", folder=5)
    assert "unknown option 'foldr'. Did you mean 'folder'?" in message
    assert "unknown_ids: Input should be 'error' or 'drop' (found 'ignore')" in message
    assert "folder: Input is not a valid path" in message


def test_an_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"unknown collection format 'bier'\. Did you mean 'beir'"):
        load_collection("bier", {}, name="mine", split="dev", relative_to=tmp_path)
