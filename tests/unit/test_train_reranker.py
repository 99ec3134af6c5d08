"""Re-rankers: what they are trained on, the folder that is left, and going on after a stop."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification

from mergesearch.cli import cli
from mergesearch.errors import CollectionError, MemoryPlanError, MergesearchError, SourceError
from mergesearch.training import memory
from mergesearch.training.base import Trained
from mergesearch.training.harness import RECORD_FILE
from mergesearch.training.pairs import TrainingPairs, mine_bm25, read_pairs
from mergesearch.training.reranking import RerankerTraining, labelled_pairs, train_reranker
from mergesearch.training.resumable import work_folder
from tests.interrupting import interrupted_and_resumed
from tests.processes import kill_when
from tests.tiny_models import WORDS, file_hashes, make_tiny
from tests.tiny_studies import make_beir, write_lines

pytest_plugins = ["tests.training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [{"query": f"search {a}", "pos": [f"the {a} of {b}"]} for a, b in zip(WORDS[8:20], WORDS[20:32], strict=True)]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_lines(file, ROWS)
    return file


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> TrainingPairs:
    return read_pairs(make_beir(tmp_path_factory.mktemp("beir") / "made"), split="dev")


def train(model: Path, pairs: Path, out: Path, **options: Any) -> Trained:
    calls = {name: options.pop(name) for name in ("progress", "save_every_s", "restart") if name in options}
    settings = {"steps": 5, "batch_size": 4, "max_length": 16, "learning_rate": 5e-3, "negatives": 2, **options}
    return train_reranker(str(model), [pairs], out, RerankerTraining(**settings), device="cpu", **calls)


def test_pairs_are_relevant_documents_and_some_of_what_bm25_finds(beir: TrainingPairs) -> None:
    collection = beir.collection
    queries, documents = (
        dict(zip(ids, texts, strict=True))
        for ids, texts in (
            (collection.query_ids, collection.query_texts),
            (collection.doc_ids, collection.doc_texts),
        )
    )
    settings = RerankerTraining(negatives=3, depth=6, positives=2, seed=1)
    columns = labelled_pairs([beir], settings)
    found = list(zip(*columns.values(), strict=True))
    assert len(set(found)) == len(found)
    shallow = mine_bm25(beir, 6, 1)
    for query, text in queries.items():
        relevant = {documents[d] for d in collection.qrels[query]}
        others = {documents[d] for d in shallow[query]}
        assert {d for q, d, label in found if q == text and label == 1} == relevant
        drawn = {d for q, d, label in found if q == text and label == 0}
        assert drawn <= others
        assert len(drawn) == min(3, len(others))
    assert columns == labelled_pairs([beir], settings)
    assert columns != labelled_pairs([beir], RerankerTraining(negatives=3, depth=6, positives=2, seed=2))


@pytest.mark.parametrize("kind", ["bert", "modernbert", "distilbert"])
def test_a_re_ranker_holds_all_that_its_class_reads(kind: str, rows: Path, tmp_path: Path) -> None:
    """Also of an encoder whose files have neither pooler nor head."""
    base = make_tiny(kind, tmp_path / kind, n_layers=1, head="mlm", sentence_transformers=False)
    made = train(base, rows, tmp_path / "out", steps=2)
    model, info = AutoModelForSequenceClassification.from_pretrained(made.folder, output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_labels == 1
    assert CrossEncoder(str(made.folder), device="cpu").max_seq_length == 16
    stored = load_file(made.folder / "model.safetensors")
    before = load_file(base / "model.safetensors")
    words = next(name for name in stored if name.endswith(("word_embeddings.weight", "tok_embeddings.weight")))
    assert torch.equal(stored[words], before[words])
    assert any(not torch.equal(stored[name], before[name]) for name in stored.keys() & before.keys())


def test_training_tells_relevant_documents_from_others(bert: Path, rows: Path, tmp_path: Path) -> None:
    made = train(bert, rows, tmp_path / "out", steps=80, batch_size=12)
    assert made.losses[1] < made.losses[0]
    columns = labelled_pairs([read_pairs(rows)], RerankerTraining(negatives=2))
    scores = CrossEncoder(str(made.folder), device="cpu").predict(
        list(zip(columns["query"], columns["document"], strict=True))
    )
    labels = np.array(columns["label"])
    assert scores[labels == 1].mean() > scores[labels == 0].mean() + 0.3


def _train_and_hang(base: Path, rows: Path, out: Path, at: int) -> None:
    torch.set_num_threads(1)
    train(base, rows, out, save_every_s=0, progress=lambda done, _: threading.Event().wait() if done == at else None)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(bert: Path, rows: Path, tmp_path: Path) -> None:
    undisturbed = train(bert, rows, tmp_path / "undisturbed")
    out = tmp_path / "out"
    kill_when(work_folder(out) / "checkpoints" / "checkpoint-3" / "whole", _train_and_hang, bert, rows, out, 4)
    assert not out.exists()
    seen: list[int] = []
    train(bert, rows, out, progress=lambda done, _: seen.append(done))
    assert seen == [3, 4, 5]
    assert file_hashes(out) == file_hashes(undisturbed.folder)


def test_an_interrupted_training_goes_on_to_the_same_bits(bert: Path, rows: Path, tmp_path: Path) -> None:
    """Over several passes, whose last batches are smaller."""
    options: dict[str, Any] = {"steps": 14, "batch_size": 7}
    undisturbed = interrupted_and_resumed(
        lambda out, **given: train(bert, rows, out, **options, **given), tmp_path, after=9
    )
    assert undisturbed.examples % 7
    with pytest.raises(MergesearchError, match=r"made with other settings \(depth: 100, now 5\)"):
        train(bert, rows, tmp_path / "out", **options, depth=5)


def test_a_re_ranker_can_be_trained_on(bert: Path, rows: Path, tmp_path: Path) -> None:
    first = train(bert, rows, tmp_path / "first", steps=2)
    second = train(first.folder, rows, tmp_path / "second", steps=1, learning_rate=1e-9)
    before, after = (load_file(made.folder / "model.safetensors") for made in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_what_cannot_be_is_refused_before_anything_is_done(
    bert: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MergesearchError, match="negatives = 0"):
        train(bert, rows, tmp_path / "out", negatives=0)
    with pytest.raises(MergesearchError, match="more than the model's 66 positions"):
        train(bert, rows, tmp_path / "out", max_length=99)
    with pytest.raises(SourceError, match="'qwen3' is no encoder"):
        train(make_tiny("qwen3", tmp_path / "decoder", n_layers=1), rows, tmp_path / "out")
    labels = {"num_labels": 3}
    three = make_tiny("bert", tmp_path / "three", n_layers=1, head="classification", config=labels)
    with pytest.raises(SourceError, match="head has 3 labels, a re-ranker one"):
        train(three, rows, tmp_path / "out")
    monkeypatch.setattr(memory, "free_memory", lambda _: 1 << 10)
    with pytest.raises(MemoryPlanError, match=r"training needs about .*--batch-size"):
        train(bert, rows, tmp_path / "out")
    monkeypatch.undo()
    assert {p.name for p in tmp_path.iterdir()} == {"decoder", "three"}
    with pytest.raises(CollectionError, match="25 pairs do not fill one batch of 26"):
        train(bert, rows, tmp_path / "out", batch_size=26)


def test_the_command(bert: Path, rows: Path, tmp_path: Path) -> None:
    arguments = ["train-reranker", str(bert), "--pairs", str(rows), "--out", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--steps", "2", "--batch-size", "4", "--max-length", "16", "--negatives", "2"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "re-ranker, 25 pairs, 2 steps" in done.output
    assert "Converting" not in done.output
    asked = json.loads((tmp_path / "out" / RECORD_FILE).read_text())["asked"]
    assert (asked["kind"], asked["negatives"], asked["depth"]) == ("reranker", 2, 100)
