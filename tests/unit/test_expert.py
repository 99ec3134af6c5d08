"""Experts: the pairs they are trained on, the negatives that are mined, what is left, and going on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from mergesearch.cli import cli
from mergesearch.errors import CollectionError, MemoryPlanError, MergesearchError, SourceError
from mergesearch.sources.adapter import open_source
from mergesearch.training import memory
from mergesearch.training.adapters import AdapterSettings
from mergesearch.training.base import Trained
from mergesearch.training.expert import ExpertSettings, train_expert
from mergesearch.training.harness import RECORD_FILE
from mergesearch.training.pairs import lay_out, mine_bm25, mine_with_model, read_pairs
from tests.interrupting import interrupted_and_resumed
from tests.tiny_models import WORDS, file_hashes, make_tiny
from tests.tiny_studies import make_beir

pytest_plugins = ["tests.training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = AdapterSettings("lora", rank=4, alpha=8, targets="all")
ROWS = [
    {"query": f"search {a} return", "pos": [f"the {b} of {a} model graph"], "neg": [f"the {b} of no {c}"]}
    for a, c in zip(WORDS[8:24], WORDS[24:40], strict=True)
    for b in WORDS[32:34]
]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", ROWS)


@pytest.fixture(scope="module")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_beir(tmp_path_factory.mktemp("beir") / "made")


def train(model: Path, pairs: Path, out: Path, **options: Any) -> Trained:
    calls = {name: options.pop(name) for name in ("progress", "save_every_s", "restart", "passes") if name in options}
    settings = {"adapter": SHAPE, "steps": 5, "batch_size": 4, "max_length": 16, "learning_rate": 5e-3, **options}
    return train_expert(str(model), [pairs], out, ExpertSettings(**settings), device="cpu", **calls)


def test_triples_are_read_with_what_was_given(rows: Path) -> None:
    pairs = read_pairs(rows)
    collection = pairs.collection
    assert collection.query_texts == list(dict.fromkeys(row["query"] for row in ROWS))
    texts = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
    for query, text in zip(collection.query_ids, collection.query_texts, strict=True):
        mine = [row for row in ROWS if row["query"] == text]
        assert {texts[d] for d in collection.qrels[query]} == {row["pos"][0] for row in mine}
        assert [texts[d] for d in pairs.negatives[query]] == [row["neg"][0] for row in mine]


def test_other_names_and_plain_texts_are_read_too(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "a.jsonl", [{"anchor": "q", "positive": "p", "negative": "n"}, {"query": "r", "pos": "s"}]
    )
    pairs = read_pairs(file)
    assert pairs.collection.doc_texts == ["p", "n", "s"]
    assert list(pairs.negatives.values()) == [["d1"], []]


def test_faults_of_pairs_are_named_with_their_lines(tmp_path: Path) -> None:
    file = write_rows(
        tmp_path / "a.jsonl", [{"query": "q"}, {"query": "q", "pos": ["p"]}, {"query": ["a", "b"], "pos": "c"}]
    )
    with pytest.raises(CollectionError, match=r"(?s)a\.jsonl:1: expected a query.*a\.jsonl:3"):
        read_pairs(file)
    with pytest.raises(CollectionError, match=r"BEIR folder or a \.jsonl file"):
        read_pairs(write_rows(tmp_path / "a.csv", []))


@pytest.mark.parametrize("how", ["bm25", "model"])
def test_mined_negatives_are_hard_and_not_relevant(how: str, beir: Path, bert: Path) -> None:
    pairs = read_pairs(beir, split="dev")
    collection = pairs.collection
    if how == "bm25":
        mined = mine_bm25(pairs, 3, 0)
    else:
        model = SentenceTransformer(str(bert), device="cpu")
        mined = mine_with_model(pairs, 3, model, {}, 8)
        vectors = model.encode(collection.doc_texts, convert_to_tensor=True)
        place = {d: i for i, d in enumerate(collection.doc_ids)}
        for query, text in zip(collection.query_ids, collection.query_texts, strict=True):
            similar = (vectors @ model.encode(text, convert_to_tensor=True)).tolist()
            found = [similar[place[d]] for d in mined[query]]
            assert found == sorted(found, reverse=True)
    assert set(mined) == set(collection.query_ids)
    assert any(mined.values())
    for query, found in mined.items():
        assert len(set(found)) == len(found) <= 3
        assert not {d for d in found if collection.qrels[query].get(d, 0) > 0}


def test_examples_have_their_negatives_given_ones_first(rows: Path) -> None:
    pairs = read_pairs(rows)
    mined = mine_bm25(pairs, 4, 0)
    columns = lay_out(pairs, mined, negatives=3, positives=1, seed=0)
    texts = dict(zip(pairs.collection.doc_ids, pairs.collection.doc_texts, strict=True))
    assert list(columns) == ["query", "document", "negative_1", "negative_2", "negative_3"]
    assert columns["query"] == pairs.collection.query_texts
    for i, query in enumerate(pairs.collection.query_ids):
        given = [texts[d] for d in pairs.negatives[query]]
        assert [columns["negative_1"][i], columns["negative_2"][i]] == given
        assert columns["negative_3"][i] in {texts[d] for d in mined[query]}
        assert columns["document"][i] in {texts[d] for d in pairs.collection.qrels[query]}
    both = lay_out(pairs, {}, negatives=0, positives=5, seed=0)
    assert len(both["query"]) == len(ROWS)
    assert set(zip(both["query"], both["document"], strict=True)) == {(r["query"], r["pos"][0]) for r in ROWS}
    # Too few are used again, and who has none gets what is not relevant.
    none = lay_out(read_pairs(rows), {}, negatives=3, positives=1, seed=0)
    assert none["negative_3"] == none["negative_1"]


@pytest.mark.parametrize("kind", [pytest.param("bert", marks=pytest.mark.slow), "qwen3"])
def test_an_expert_is_an_adapter_that_is_a_source(kind: str, rows: Path, tmp_path: Path) -> None:
    base = make_tiny(kind, tmp_path / kind, n_layers=1)
    made = train(base, rows, tmp_path / "out")
    source = open_source("expert", base, made.folder)
    matrices = {n for n, t in source.tensors.items() if len(t.shape) == 2 and "layer" in n}
    assert source.made == matrices
    assert any(not torch.equal(source.read(n), source.base.read(n)) for n in matrices)  # type: ignore[attr-defined]


def test_a_whole_expert_keeps_the_retrievers_files(bert: Path, rows: Path, tmp_path: Path) -> None:
    made = train(bert, rows, tmp_path / "out", adapter=None)
    before, after = (load_file(folder / "model.safetensors") for folder in (bert, made.folder))
    assert before.keys() == after.keys()
    word_embeddings = "embeddings.word_embeddings.weight"
    assert torch.equal(before[word_embeddings], after[word_embeddings])
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (made.folder / "modules.json").read_bytes() == (bert / "modules.json").read_bytes()


def test_training_brings_queries_to_their_documents(bert: Path, rows: Path, tmp_path: Path) -> None:
    made = train(bert, rows, tmp_path / "out", adapter=None, steps=20, batch_size=8, learning_rate=5e-3)
    assert made.losses[1] < made.losses[0] - 0.3


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"adapter": None, "mini_batch": 2, "steps": 12}, marks=pytest.mark.slow)]
)
def test_an_interrupted_expert_goes_on_to_the_same_bits(
    options: dict[str, Any], bert: Path, rows: Path, tmp_path: Path
) -> None:
    """Also over several passes, and with gradients cached."""
    options = {"adapter": AdapterSettings("lora", rank=2, alpha=4, dropout=0.1), **options}
    interrupted_and_resumed(lambda out, **given: train(bert, rows, out, **options, **given), tmp_path, after=4)
    with pytest.raises(MergesearchError, match=r"made with other settings \(temperature: 0\.05, now 0\.1\)"):
        train(bert, rows, tmp_path / "out", **options, temperature=0.1)


def test_each_pass_leaves_the_adapter_of_that_many_passes(bert: Path, rows: Path, tmp_path: Path) -> None:
    """Also where the training was stopped in between."""

    def stop(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    options = {"steps": None, "epochs": 3, "adapter": SHAPE, "passes": tmp_path / "passes"}
    with pytest.raises(KeyboardInterrupt):
        train(bert, rows, tmp_path / "out", save_every_s=0, progress=stop, **options)
    assert {p.name for p in (tmp_path / "passes").iterdir()} == {"1"}
    made = train(bert, rows, tmp_path / "out", **options)
    assert {p.name for p in (tmp_path / "passes").iterdir()} == {"1", "2", "3"}
    weights = "adapter_model.safetensors"
    third, last = (load_file(folder / weights) for folder in (tmp_path / "passes" / "3", made.folder))
    assert all(torch.equal(third[name], last[name]) for name in last)
    first = load_file(tmp_path / "passes" / "1" / weights)
    assert any(not torch.equal(first[name], last[name]) for name in last)
    undisturbed = {**options, "passes": tmp_path / "others"}
    train(bert, rows, tmp_path / "undisturbed", **undisturbed)
    for number in "123":
        assert file_hashes(tmp_path / "passes" / number) == file_hashes(tmp_path / "others" / number)


def test_a_model_that_pools_otherwise_meanwhile_is_not_trained_on(rows: Path, tmp_path: Path) -> None:
    base = make_tiny("bert", tmp_path / "base", n_layers=1)
    train(base, rows, tmp_path / "out", steps=1)
    assert train(base, rows, tmp_path / "out", steps=1).before
    file = base / "1_Pooling" / "config.json"
    stated = json.loads(file.read_text())
    swapped = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    file.write_text(json.dumps({**stated, **swapped}))
    with pytest.raises(MergesearchError, match="base_settings_sha256"):
        train(base, rows, tmp_path / "out", steps=1)


def test_prompts_are_the_models_unless_others_are_given(rows: Path, tmp_path: Path) -> None:
    xlm = make_tiny("xlm-roberta", tmp_path / "xlm", n_layers=1)
    own = train(xlm, rows, tmp_path / "own", steps=1)
    other = train(xlm, rows, tmp_path / "other", steps=1, query_prompt="find: ", document_prompt="")
    prompts = [json.loads((made.folder / RECORD_FILE).read_text())["prompts"] for made in (own, other)]
    assert prompts == [{"query": "query: ", "document": "passage: "}, {"query": "find: ", "document": ""}]
    assert own.losses != other.losses


def test_a_model_mines_for_an_expert(bert: Path, beir: Path, tmp_path: Path) -> None:
    made = train(bert, beir, tmp_path / "out", split="dev", mine=str(bert), steps=1)
    asked = json.loads((made.folder / RECORD_FILE).read_text())["asked"]
    assert asked["miner_sha256"] == asked["base_sha256"]


def test_what_cannot_be_is_refused_before_anything_is_done(
    bert: Path, rows: Path, beir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MergesearchError, match="temperature = 0"):
        train(bert, rows, tmp_path / "out", temperature=0)
    with pytest.raises(MergesearchError, match="more than the model's 66 positions"):
        train(bert, rows, tmp_path / "out", max_length=99)
    with pytest.raises(CollectionError, match="no split 'train'"):
        train(bert, beir, tmp_path / "out")
    bare = make_tiny("bert", tmp_path / "bare", n_layers=1, sentence_transformers=False)
    with pytest.raises(SourceError, match="pooled"):
        train(bare, rows, tmp_path / "out")
    monkeypatch.setattr(memory, "free_memory", lambda _: 1 << 10)
    with pytest.raises(MemoryPlanError, match=r"training needs about .*--mini-batch"):
        train(bert, rows, tmp_path / "out")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["bare"]
    with pytest.raises(CollectionError, match="16 examples do not fill one batch of 17"):
        train(bert, rows, tmp_path / "out", batch_size=17)


def test_the_command(bert: Path, rows: Path, tmp_path: Path) -> None:
    arguments = ["train-expert", str(bert), "--pairs", str(rows), "--out", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--steps", "2", "--batch-size", "4", "--max-length", "16", "--rank", "2"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "lora adapter, 16 examples, 2 steps" in done.output
