"""What each format reads beyond what it writes: TREC markup, titles, BEIR and MTEB form, candidate lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mergesearch.errors import CollectionError
from mergesearch.evaluation.formats import load_collection
from mergesearch.evaluation.formats.hub import write_local

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.collection import Collection

QRELS = {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": 0}}
TEXTS = ["A title one", "two"]


def load(format_: str, folder: Path, split: str = "dev", **options: object) -> Collection:
    return load_collection(format_, options, name="mine", split=split, relative_to=folder)


def errors(format_: str, folder: Path, split: str = "dev", **options: object) -> str:
    with pytest.raises(CollectionError) as caught:
        load(format_, folder, split, **options)
    return str(caught.value)


# TSV and TREC files

TREC = {"corpus_file": "docs", "queries_file": "queries", "qrels_file": "qrels.{split}"}


@pytest.fixture
def trec(tmp_path: Path) -> Path:
    (tmp_path / "docs").write_text("d1\tA title\tone\nd2\ttwo\n")
    (tmp_path / "queries").write_text("q1\tfirst\nq2\tsecond\n")
    (tmp_path / "qrels.dev").write_text("q1 0 d1 1\nq2\t0\td2\t2\nq2 0 d1 0\n")
    return tmp_path


def test_tsv_with_and_without_titles(trec: Path) -> None:
    loaded = load("trec", trec, **TREC)
    assert (loaded.doc_texts, loaded.query_texts, loaded.qrels) == (TEXTS, ["first", "second"], QRELS)


def test_three_column_qrels_with_and_without_header(trec: Path) -> None:
    (trec / "qrels.dev").write_text("q1\td1\t1\nq2\td2\t2\nq2\td1\t0\n")
    assert load("trec", trec, **TREC).qrels == QRELS
    (trec / "qrels.dev").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\nq2\td1\t0\n")
    assert load("trec", trec, **TREC).qrels == QRELS


def test_several_corpus_files_and_json_lines_among_them(trec: Path) -> None:
    (trec / "more").write_text('{"_id": "d3", "title": "T", "text": "three"}\n')
    options = TREC | {"corpus_file": ["docs", "more"]}
    assert load("trec", trec, **options).doc_texts == [*TEXTS, "T three"]


def test_headers_of_tsv_files(trec: Path) -> None:
    (trec / "docs").write_text("docid\ttitle\ttext\nd1\tA title\tone\nd2\t\ttwo\n")
    assert "docs:1: the first line, 'docid\\ttitle\\ttext', looks like a header" in errors("trec", trec, **TREC)
    (trec / "queries").write_text("qid\ttext\nq1\tfirst\nq2\tsecond\n")
    assert load("trec", trec, header=True, **TREC).doc_texts == TEXTS


def test_trec_markup(trec: Path) -> None:
    (trec / "docs").write_text(
        "<DOC>\n<DOCNO> d1 </DOCNO>\n<HEADLINE>\nA title\n</HEADLINE>\n<TEXT>\n<P>one</P>\n</TEXT>\n</DOC>\n"
        "<DOC><DOCNO>d2</DOCNO>\nAT&amp;T &amp; 1 < 2\n</DOC>\n"
    )
    (trec / "queries").write_text(
        "<top>\n<num> Number: q1\n<title> Topic: first\n<desc> Description:\nabout the\nfirst\n"
        "<narr> all\n</top>\n\n"
        "<top>\n<num>q2</num>\n<title>second</title>\n<desc>the other</desc>\n</top>\n"
    )
    loaded = load("trec", trec, **TREC)
    assert loaded.doc_texts == ["A title one", "AT&T & 1 < 2"]
    assert loaded.query_texts == ["first", "second"]
    assert load("trec", trec, topic_field="desc", **TREC).query_texts == ["about the first", "the other"]
    assert "queries:10: the topic has no <narr>" in errors("trec", trec, topic_field="narr", **TREC)


def test_faults_of_trec_markup(trec: Path) -> None:
    (trec / "docs").write_text("<DOC>\n<DOCNO>d1</DOCNO>\none\n<DOC>\n<TEXT>two</TEXT>\n</DOC>\n<DOC>\nlast\n")
    message = errors("trec", trec, **TREC)
    assert "docs:1: <doc> is not closed before the next one" in message
    assert "docs:4: the document has no <DOCNO>" in message
    assert "docs:7: <doc> is not closed at the end of the file" in message


def test_a_run_gives_the_candidates(trec: Path) -> None:
    (trec / "run.dev").write_text("q1 Q0 d2 1 9.5 bm25\nq1 Q0 d1 2 9.1 bm25\nq2 Q0 d2 1 3 bm25\n")
    loaded = load("trec", trec, candidates_file="run.{split}", **TREC)
    assert loaded.candidates == {"q1": ["d2", "d1"], "q2": ["d2"]}
    (trec / "run.dev").write_text("q1 Q0 d7 1 9.5 bm25\n")
    message = errors("trec", trec, candidates_file="run.{split}", **TREC)
    assert "run.dev:1: unknown document id 'd7'" in message
    assert "query 'q2' has no candidates, while others have" in message


def test_malformed_lines_of_tsv_and_trec_files(trec: Path) -> None:
    (trec / "docs").write_text("d1\tone\nd2 two\n")
    (trec / "queries").write_text("q1\tfirst\tand more\n")
    (trec / "qrels.dev").write_text("q1 d1 1\n")
    (trec / "run.dev").write_text("q1 d1 1\n")
    message = errors("trec", trec, candidates_file="run.{split}", **TREC)
    assert "docs:2: expected id, [title,] text separated by tabs, found 1 columns" in message
    assert "queries:1: expected id, text separated by tabs, found 3 columns" in message
    assert "qrels.dev:1: expected four columns" in message
    assert "run.dev:1: expected six columns" in message


def test_splits_of_trec_files_are_never_mixed_up(trec: Path) -> None:
    (trec / "qrels.test").write_text("q1 0 d1 1\n")
    assert "there is no split 'train'; splits there are: dev, test" in errors("trec", trec, "train", **TREC)
    by_name = TREC | {"qrels_file": {"dev": "qrels.dev", "final": "qrels.test"}}
    assert load("trec", trec, "final", **by_name).qrels == {"q1": {"d1": 1}}
    assert "there is no split 'test'; splits there are: dev, final" in errors("trec", trec, "test", **by_name)
    message = errors("trec", trec, **(TREC | {"qrels_file": "qrels.dev"}))
    assert "must say which split it belongs to" in message
    assert "{dev: qrels.dev}" in message


def test_missing_files_are_named_at_once(trec: Path) -> None:
    for name in ("docs", "queries"):
        (trec / name).unlink()
    message = errors("trec", trec, **TREC)
    assert "docs: there is no such file" in message
    assert "queries: there is no such file" in message


# Hugging Face data sets, as local folders


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets-cache"))
    return tmp_path


CORPUS = [{"_id": "d1", "title": "A title", "text": "one"}, {"_id": "d2", "title": "", "text": "two"}]
QUERIES = [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}]
PAIRS = [(q, d, g) for q, rated in QRELS.items() for d, g in rated.items()]
JUDGED = [{"query-id": q, "corpus-id": d, "score": float(g)} for q, d, g in PAIRS]


def test_beir_form_with_qrels_in_their_own_data_set(hub: Path) -> None:
    write_local(hub / "set", {"corpus": {"corpus": CORPUS}, "queries": {"queries": QUERIES}})
    (hub / "set-qrels").mkdir()
    tsv = "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{g}\n" for q, d, g in PAIRS)
    for split in ("train", "validation", "test"):
        (hub / "set-qrels" / f"{split}.tsv").write_text(tsv)
    loaded = load("huggingface", hub, "validation", dataset="set")
    assert (loaded.doc_texts, loaded.query_texts, loaded.qrels) == (TEXTS, ["first", "second"], QRELS)
    assert "splits there are: train, validation, test" in errors("huggingface", hub, "dev", dataset="set")


def test_beir_form_from_parquet_with_the_qrels_elsewhere(hub: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
        (hub / "set" / name).mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(hub / "set" / name / "data.parquet")
    (hub / "set" / "README.md").write_text(
        "---\nconfigs:\n- config_name: corpus\n  data_files: corpus/*.parquet\n"
        "- config_name: queries\n  data_files: queries/*.parquet\n---\n"
    )
    write_local(hub / "judged", {"default": {"dev": JUDGED}})
    loaded = load("huggingface", hub, dataset="set", qrels_dataset="judged")
    assert (loaded.doc_texts, loaded.qrels) == (TEXTS, QRELS)
    assert "set-qrels" in errors("huggingface", hub, dataset="./set")


@pytest.mark.parametrize("qrels", ["qrels", "default"])
def test_mteb_form(hub: Path, qrels: str) -> None:
    with_id = [{"id": d["_id"], "title": d["title"], "text": d["text"]} for d in CORPUS]
    configs: dict[str, Any] = {
        "corpus": {"train": CORPUS[:1], "dev": with_id},
        "queries": {"train": QUERIES[:1], "dev": QUERIES},
        qrels: {"train": JUDGED[:1], "dev": JUDGED},
        "top_ranked": {"dev": [{"query-id": q, "corpus-ids": ["d2", "d1"]} for q in QRELS]},
    }
    configs["corpus"]["train"] = with_id[:1]
    write_local(hub / "set", configs)
    assert load("huggingface", hub, dataset="set").qrels == QRELS
    assert load("huggingface", hub, "train", dataset="set").doc_texts == TEXTS[:1]
    listed = load("huggingface", hub, dataset="set", candidates_config="top_ranked")
    assert listed.candidates == {"q1": ["d2", "d1"], "q2": ["d2", "d1"]}


@pytest.mark.parametrize("style", ["{subset}-{kind}", "{kind}-{subset}"])
def test_mteb_form_with_subsets(hub: Path, style: str) -> None:
    def called(kind: str) -> str:
        return style.format(subset="ja", kind=kind)

    qrels = called("qrels") if style.startswith("{subset}") else "ja"
    configs: dict[str, Any] = {
        called("corpus"): {"corpus": CORPUS},
        called("queries"): {"queries": QUERIES},
        qrels: {"dev": JUDGED},
    }
    write_local(hub / "set", configs)
    assert load("huggingface", hub, dataset="set", subset="ja").qrels == QRELS
    message = errors("huggingface", hub, dataset="set", subset="fr")
    assert "no config for documents: looked for fr-corpus, corpus-fr; there are: " in message
    given = {f"{kind}_config": called(kind) for kind in ("corpus", "queries")}
    assert load("huggingface", hub, dataset="set", qrels_config=qrels, **given).qrels == QRELS


def test_columns_and_folders_that_are_not_there(hub: Path) -> None:
    write_local(
        hub / "set",
        {
            "corpus": {"corpus": [{"pid": "d1", "body": "x"}]},
            "queries": {"queries": QUERIES},
            "default": {"dev": JUDGED},
        },
    )
    message = errors("huggingface", hub, dataset="set")
    assert "set[corpus/corpus]: missing columns: _id or id, text; columns there are: pid, body" in message
    assert "there is no such folder" in errors("huggingface", hub, dataset="./absent")
    assert "has no revisions" in errors("huggingface", hub, dataset="set", revision="main")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_data_set_that_cannot_be_reached(hub: Path) -> None:
    message = errors("huggingface", hub, dataset="no-such-organisation/no-such-data-set")
    assert "data set 'no-such-organisation/no-such-data-set': cannot be read" in message
    assert "check its name, the network" in message


def test_without_the_datasets_package(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert "pip install mergesearch[hf]" in errors("huggingface", hub, dataset="set")


# JQaRA


def row(query: str, document: str, text: str, label: int, title: str = "A title") -> dict[str, Any]:
    return {
        "id": f"{query}-{document}",
        "q_id": query,
        "passage_row_id": document,
        "label": label,
        "text": text,
        "title": title,
        "question": f"question {query}",
        "answers": ["unused"],
    }


def test_jqara_rows(hub: Path) -> None:
    rows = [
        row("q1", "d1", "one", 1),
        row("q1", "d2", "two", 0),
        row("q2", "d2", "two", 1),
        row("q2", "d3", "three", 0),
    ]
    write_local(hub / "set", {"default": {"dev": rows, "test": rows[:2], "unused": rows[:1]}})
    loaded = load("jqara", hub, dataset="set")
    assert loaded.doc_texts == ["A title one", "A title two", "A title three"]
    assert loaded.query_texts == ["question q1", "question q2"]
    assert loaded.candidates == {"q1": ["d1", "d2"], "q2": ["d2", "d3"]}
    assert loaded.qrels == {"q1": {"d1": 1, "d2": 0}, "q2": {"d2": 1, "d3": 0}}
    assert loaded.warnings == []
    assert load("jqara", hub, "test", dataset="set").query_ids == ["q1"]


def test_a_passage_with_two_texts(hub: Path) -> None:
    rows = [row("q1", "d1", "one", 1), row("q2", "d1", "another", 1)]
    write_local(hub / "set", {"default": {"dev": rows}})
    message = errors("jqara", hub, dataset="set")
    assert "set[default/dev]:2: document id 'd1' was given to another document on line 1" in message


# ir_datasets


@pytest.fixture
def registered(trec: Path, request: pytest.FixtureRequest) -> str:
    import ir_datasets

    class Scored(ir_datasets.formats.BaseScoredDocs):  # type: ignore[misc]
        def scoreddocs_iter(self) -> Any:
            return iter([ir_datasets.formats.GenericScoredDoc(q, d, 1.0) for q in QRELS for d in ("d2", "d1")])

    class Titled(ir_datasets.formats.BaseDocs):  # type: ignore[misc]
        def docs_iter(self) -> Any:
            doc = ir_datasets.datasets.beir.BeirTitleDoc
            return iter([doc("d1", "one", "A title"), doc("d2", "two", "")])

    files = {"queries_tsv": trec / "queries", "qrels_trec": trec / "qrels.dev"}
    made = ir_datasets.create_dataset(**files)
    parent = f"local/{request.node.name}"
    ir_datasets.registry.register(f"{parent}/dev", ir_datasets.Dataset(Titled(), Scored(), made))
    ir_datasets.registry.register(parent, ir_datasets.Dataset(Titled()))
    return parent


def test_ids_with_and_without_the_split(registered: str, tmp_path: Path) -> None:
    for id_ in (registered, f"{registered}/dev"):
        loaded = load("ir_datasets", tmp_path, id=id_)
        assert (loaded.doc_texts, loaded.query_texts, loaded.qrels) == (TEXTS, ["first", "second"], QRELS)


def test_an_id_of_another_split_is_never_read_for_this_one(registered: str, tmp_path: Path) -> None:
    message = errors("ir_datasets", tmp_path, "test", id=f"{registered}/dev")
    assert "it ends in 'dev' but split 'test' is asked for" in message


def test_scored_documents_as_candidates(registered: str, tmp_path: Path) -> None:
    loaded = load("ir_datasets", tmp_path, id=registered, scored_candidates=True)
    assert loaded.candidates == {"q1": ["d2", "d1"], "q2": ["d2", "d1"]}


def test_ids_without_queries_name_those_below(registered: str, tmp_path: Path) -> None:
    message = errors("ir_datasets", tmp_path, "test", id=registered)
    assert "it has no queries and no judgements; below it there are: dev" in message


def test_unknown_ids_come_with_close_ones(tmp_path: Path) -> None:
    message = errors("ir_datasets", tmp_path, id="beir/nfcorpsu")
    assert "unknown ir_datasets id 'beir/nfcorpsu'. Did you mean 'beir/nfcorpus'" in message


def test_files_that_went_away(registered: str, trec: Path, tmp_path: Path) -> None:
    (trec / "queries").unlink()
    assert "ir_datasets could not read it (FileNotFoundError" in errors("ir_datasets", tmp_path, id=registered)
