"""Candidates: what single kinds of first stages find, and the cache that all workers share."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.errors import CollectionError, SourceError
from mergesearch.evaluation.candidates import Candidates, find_candidates, first_stage_identity
from mergesearch.evaluation.collection import Collection
from mergesearch.evaluation.first_stages import open_first_stage
from mergesearch.evaluation.pool import tokenize
from mergesearch.evaluation.rerank_settings import FirstStageSpec
from tests.tiny_models import WORDS, make_tiny


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "first-stage"


def make_collection(seed: int = 0, n_queries: int = 6, n_documents: int = 50, n_words: int = 7) -> Collection:
    rng = np.random.default_rng(seed)
    doc_ids = [f"doc{i}" for i in rng.permutation(n_documents)]
    texts = [" ".join(rng.choice(WORDS, rng.integers(2, n_words))) for _ in doc_ids]
    query_ids = [f"q{i}" for i in range(n_queries)]
    queries = [" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in query_ids]
    qrels = {q: {doc_ids[int(rng.integers(n_documents))]: 1} for q in query_ids}
    return Collection("made", "dev", query_ids, queries, doc_ids, texts, qrels)


def plain_bm25(collection: Collection, depth: int, **parameters: object) -> dict[str, list[tuple[str, float]]]:
    """bm25s called plainly for the whole ranking, score 0 left out, ties put in order."""
    index = bm25s.BM25(backend="numpy", **parameters)
    index.index([tokenize(text) for text in collection.doc_texts], show_progress=False)
    found = {}
    for query_id, text in zip(collection.query_ids, collection.query_texts, strict=True):
        rows, scores = index.retrieve([tokenize(text)], k=len(collection.doc_ids), show_progress=False)
        ranked = [(float(s), collection.doc_ids[r]) for r, s in zip(rows[0], scores[0], strict=True) if s > 0]
        found[query_id] = [(d, s) for s, d in sorted(ranked, reverse=True)[:depth]]
    return found


def as_lists(found: Candidates, collection: Collection) -> dict[str, list[tuple[str, float]]]:
    assert found.scores is not None
    return {
        q: [(collection.doc_ids[r], float(s)) for r, s in zip(rows, scores, strict=True) if r >= 0]
        for q, rows, scores in zip(collection.judged, found.rows, found.scores, strict=True)
    }


@pytest.mark.parametrize(
    "parameters",
    [{}, {"k1": 0.9, "b": 0.4}, {"method": "robertson"}, {"method": "atire", "k1": 1.2}],
)
@pytest.mark.parametrize("depth", [1, 7, 100])
def test_bm25_is_bm25s_without_its_padding(parameters: dict[str, object], depth: int) -> None:
    collection = make_collection(n_documents=120)
    found = find_candidates(FirstStageSpec("bm25", parameters, depth), collection)
    assert as_lists(found, collection) == plain_bm25(collection, depth, **parameters)


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 12))
def test_bm25_breaks_ties_by_id_whatever_the_texts(seed: int, n_documents: int, depth: int) -> None:
    collection = make_collection(seed, n_documents=n_documents, n_words=3)  # of one word or two: mostly ties
    found = open_first_stage("bm25", {}).rank(collection, depth, relative_to=Path(), device="cpu")
    assert as_lists(found, collection) == plain_bm25(collection, depth)


def test_bm25_within_lists_keeps_what_shares_no_word_behind_the_rest() -> None:
    collection = make_collection()
    listed = replace(collection, candidates=dict.fromkeys(collection.query_ids, collection.doc_ids[:9]))
    found = as_lists(find_candidates(FirstStageSpec(), listed), listed)
    whole = plain_bm25(collection, 50)
    for query_id, ranked in found.items():
        assert {d for d, _ in ranked} == set(collection.doc_ids[:9])
        scored = [entry for entry in whole[query_id] if entry[0] in collection.doc_ids[:9]]
        assert ranked[: len(scored)] == scored, "statistics are those of the whole corpus"
        assert {s for _, s in ranked[len(scored) :]} <= {0.0}


def test_queries_that_nothing_is_found_for_are_told_of(tmp_path: Path) -> None:
    collection = make_collection()
    texts = ["zyzzyva", *collection.query_texts[1:]]
    found = find_candidates(FirstStageSpec(), replace(collection, query_texts=texts))
    assert (found.rows[0] == -1).all()
    assert found.warnings == ("1 of 6 queries have no candidates and score 0, first: 'q0'",)
    with pytest.raises(CollectionError, match="no candidate for any of its 6 queries"):
        find_candidates(FirstStageSpec(), replace(collection, query_texts=["zyzzyva"] * 6))


class TestRun:
    def spec(self, folder: Path, lines: list[str], **options: object) -> FirstStageSpec:
        (folder / "made.dev.trec").write_text("".join(f"{line}\n" for line in lines))
        return FirstStageSpec("run", {"file": "{collection}.{split}.trec", **options}, 3, folder)

    def test_scores_count_and_ranks_do_not(self, tmp_path: Path) -> None:
        collection = make_collection()
        lines = ["q0 Q0 doc2 9 1.5 x", "q0 Q0 doc30 1 -2 x", "q0 Q0 doc4 2 1.5 x", "q0 Q0 doc5 3 1.25 x"]
        found = find_candidates(self.spec(tmp_path, [*lines, "q2 Q0 doc7 1 3 x", "other Q0 ? 1 3 x"]), collection)
        expected = {"q0": [("doc4", 1.5), ("doc2", 1.5), ("doc5", 1.25)], "q2": [("doc7", 3.0)]}
        assert as_lists(found, collection) == {q: expected.get(q, []) for q in collection.query_ids}
        assert found.warnings == ("4 of 6 queries have no candidates and score 0, first: 'q1'",)

    def test_unknown_documents_are_counted_and_may_be_dropped(self, tmp_path: Path) -> None:
        collection = make_collection()
        lines = ["q0 Q0 doc2 1 1 x", "q0 Q0 else 2 1 x", "q1 Q0 where 1 1 x"]
        with pytest.raises(
            CollectionError, match=r"2 of its 3 entries .* 50 of the corpus, first: 'else' of query 'q0'"
        ):
            find_candidates(self.spec(tmp_path, lines), collection)
        found = find_candidates(self.spec(tmp_path, lines, unknown_ids="drop"), collection)
        assert "2 entries of the run name documents that the corpus lacks, first: 'else'" in found.warnings
        assert as_lists(found, collection)["q0"] == [("doc2", 1.0)]

    def test_all_faults_are_listed_with_their_lines(self, tmp_path: Path) -> None:
        lines = ["q0 Q0 doc2 1 1 x", "q0 doc3 1", "q0 Q0 doc3 1 nan x", "q0 Q0 doc3 1 high x", "q0 Q0 doc2 2 1 x"]
        with pytest.raises(CollectionError) as caught:
            find_candidates(self.spec(tmp_path, lines), make_collection())
        places = [problem.where.rpartition(":")[2] for problem in caught.value.problems]
        assert places == ["2", "3", "4", "5"]
        assert "ranks document 'doc2' twice" in str(caught.value)

    def test_a_missing_file_is_named_as_it_was_looked_for(self, tmp_path: Path) -> None:
        spec = FirstStageSpec("run", {"file": "runs/{collection}.{split}.trec"}, relative_to=tmp_path)
        with pytest.raises(CollectionError, match=r"runs/made\.dev\.trec"):
            first_stage_identity(spec, make_collection())

    def test_another_content_is_another_run_and_another_place_is_not(self, tmp_path: Path) -> None:
        collection = make_collection()
        spec = self.spec(tmp_path, ["q0 Q0 doc2 1 1 x"])
        (tmp_path / "b").mkdir()
        moved = self.spec(tmp_path / "b", ["q0 Q0 doc2 1 1 x"])
        assert first_stage_identity(moved, collection) == first_stage_identity(spec, collection)
        other = self.spec(tmp_path / "b", ["q0 Q0 doc2 1 2 x"])
        assert first_stage_identity(other, collection) != first_stage_identity(spec, collection)


def test_a_model_ranks_as_its_embeddings_do(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    collection = make_collection()
    folder = make_tiny("bert", tmp_path / "model", n_layers=2)
    spec = FirstStageSpec("model", {"model": "model", "query_prompt": "search "}, 7, tmp_path)
    found = as_lists(find_candidates(spec, collection), collection)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    queries = model.encode(["search " + text for text in collection.query_texts], show_progress_bar=False)
    scores = queries @ model.encode(collection.doc_texts, show_progress_bar=False).T
    for query_id, own in zip(collection.query_ids, scores, strict=True):
        expected = sorted(map(float, own), reverse=True)[:7]
        assert [score for _, score in found[query_id]] == pytest.approx(expected, abs=1e-5)
        rows = [collection.doc_ids.index(d) for d, _ in found[query_id]]
        assert own[rows].tolist() == pytest.approx(expected, abs=1e-5)


def test_another_model_is_another_first_stage_and_another_place_is_not(tmp_path: Path) -> None:
    collection = make_collection()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_tiny("bert", tmp_path / name, n_layers=1, seed=seed)
    a, b, c = (
        first_stage_identity(FirstStageSpec("model", {"model": f"./{n}"}, 5, tmp_path), collection) for n in "abc"
    )
    assert a == b != c
    config = tmp_path / "b" / "config_sentence_transformers.json"
    config.write_text(config.read_text() + "\n")
    assert first_stage_identity(FirstStageSpec("model", {"model": "./b"}, 5, tmp_path), collection) != a
    with pytest.raises(SourceError, match="no folder"):
        first_stage_identity(FirstStageSpec("model", {"model": "./nowhere"}, 5, tmp_path), collection)


def test_lists_longer_than_the_depth_are_not_cut() -> None:
    collection = make_collection()
    listed = replace(collection, candidates=dict.fromkeys(collection.query_ids, collection.doc_ids[:9]))
    with pytest.raises(CollectionError, match="`depth: 9`"):
        find_candidates(FirstStageSpec("candidates", depth=8), listed)
    assert find_candidates(FirstStageSpec("candidates", depth=9), listed).scores is None
    with pytest.raises(CollectionError, match="no candidate lists"):
        find_candidates(FirstStageSpec("candidates"), collection)


def test_found_once_and_read_ever_after(shelf: Path) -> None:
    collection = make_collection()
    first = find_candidates(FirstStageSpec(), collection)
    (file,) = shelf.rglob("candidates.npz")
    stamp = file.stat().st_mtime_ns
    again = find_candidates(FirstStageSpec(), replace(collection, name="another name", split="another"))
    assert (file.stat().st_mtime_ns, list(shelf.rglob("*.npz"))) == (stamp, [file])
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.scores, again.scores)
    for spec in (FirstStageSpec(options={"b": 0.5}), FirstStageSpec(depth=5)):
        find_candidates(spec, collection)
    find_candidates(FirstStageSpec(), make_collection(seed=1))
    assert len(list(shelf.rglob("*.npz"))) == 4


@pytest.mark.parametrize("damage", [b"", b"PK half", None])
def test_a_damaged_file_is_made_again(shelf: Path, damage: bytes | None) -> None:
    collection = make_collection()
    first = find_candidates(FirstStageSpec(), collection)
    (file,) = shelf.rglob("candidates.npz")
    whole = file.read_bytes()
    file.write_bytes(damage if damage is not None else whole[: len(whole) // 2])
    again = find_candidates(FirstStageSpec(), collection)
    np.testing.assert_array_equal(first.rows, again.rows)
    assert file.read_bytes() != damage


def test_a_worker_that_is_killed_over_it_leaves_nothing_that_passes_for_whole(shelf: Path) -> None:
    program = """
import os, signal
import numpy as np
from mergesearch.evaluation import candidates
from mergesearch.evaluation.rerank_settings import FirstStageSpec
from tests.unit.test_candidates import make_collection
write = candidates._write
def killed(file, *others):
    write(file, *others)
    file.write_bytes(file.read_bytes()[:100])
    os.kill(os.getpid(), signal.SIGKILL)
candidates._write = killed
candidates.find_candidates(FirstStageSpec(), make_collection())
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(shelf.rglob("candidates.npz"))) == 1
    collection = make_collection()
    assert as_lists(find_candidates(FirstStageSpec(), collection), collection) == plain_bm25(collection, 100)


def test_workers_that_want_the_same_at_once_all_get_it(shelf: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(find_candidates, [(FirstStageSpec(), make_collection())] * 3, chunksize=1)
    for one in found:
        np.testing.assert_array_equal(one.rows, found[0].rows)
    assert len(list(shelf.rglob("candidates.npz"))) == 1
    assert not list(shelf.glob(".partial-*"))
