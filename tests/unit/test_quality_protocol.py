"""The quality protocol on tiny models: what it reads, that it goes on, and that test is read once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mergesearch.errors import CollectionError, EvaluationError, StudyFileError
from mergesearch.evaluation.formats import load_collection
from mergesearch.protocols.quality.running import run_collection, run_protocol
from mergesearch.protocols.quality.schema import read_protocol
from mergesearch.protocols.quality.text import dev_sample, split_docstring, training_pairs, write_beir
from mergesearch.storage.store import StudyStore
from tests.tiny_models import make_tiny
from tests.tiny_studies import make_beir, write_lines

ROWS = ["grid", "surrogate", "TPE"]


def make_protocol(folder: Path) -> Path:
    """A protocol file with everything it names."""
    make_tiny("bert", folder / "retriever", n_layers=2)
    make_beir(folder / "made", n_queries=12, n_documents=40)
    corpus = [json.loads(line) for line in (folder / "made" / "corpus.jsonl").read_text().splitlines()]
    write_lines(folder / "made" / "corpus.jsonl", [{**d, "title": f"{d['_id']} {d['text'][:9]}"} for d in corpus])
    training = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3, "max_length": 16}
    content = {
        "protocol": "quality",
        "work": "work",
        "seed": 5,
        "processes": 1,
        "retriever": "retriever",
        "metric": "ndcg@10",
        "dtype": "float32",
        "segments": 2,
        "domain_models": {"words": {"kind": "masked_lm", **training}, "pairs": {"kind": "contrastive", **training}},
        "uniform": ["pairs"],
        "searches": [
            {"row": "surrogate", "domain": "pairs", "strategy": "embedding_surrogate", "step": 0.25, "trials": 6},
            {"row": "grid", "domain": "pairs", "strategy": "grid", "step": 0.5},
            {"row": "TPE", "domain": "pairs", "strategy": "tpe", "step": 0.25, "trials": 6, "seeds": 2},
            {"row": "grid with words", "domain": "words", "strategy": "grid", "step": 1.0},
        ],
        "significance": 0.05,
        "calibration": {"splits": 20, "level": 0.9},
        "collections": {
            "made": {
                "folder": "made",
                "pairs": "titles",
                "dev": {"queries": 10, "judged": 1, "negatives": 2},
                "max_length": {"query": 16, "document": 16},
            }
        },
    }
    write(folder / "quality.yaml", content)
    return folder / "quality.yaml"


def write(file: Path, content: dict[str, Any]) -> None:
    with file.open("w", encoding="utf-8") as out:
        YAML().dump(content, out)


def change(file: Path, **entries: Any) -> None:
    write(file, {**YAML(typ="safe").load(file), **entries})


def readings(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """By study: subject and recipe of every reading of its test split."""
    url = f"sqlite:///{folder / 'work' / 'made' / 'studies.db'}"
    studies = sorted(f.stem for f in (folder / "work" / "made").glob("*.yaml"))
    found = {}
    for name in ["made-surrogate-5", "made-grid-5", "made-TPE-5", "made-TPE-6", "made-grid-with-words-5", *studies]:
        with StudyStore.open(url, name, None, exclusive=False) as store:
            found[name] = [(r.subject, r.fingerprint or "") for r in store.test_readings()]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a protocol that was run to its end; only to be read."""
    folder = tmp_path_factory.mktemp("protocol")
    run_collection(make_protocol(folder), "made")
    return folder


def test_every_row_and_source_is_read_once_and_recorded(finished: Path) -> None:
    found = readings(finished)
    subjects = [s for rows in found.values() for s, _ in rows]
    assert sorted(s for s in subjects if not s.startswith("chosen")) == [
        "pairs alone",
        "retriever alone",
        "uniform average with pairs",
        "words alone",
    ]
    assert all(sum(s.startswith("chosen") for s, _ in rows) == 1 for rows in found.values())


def test_equal_merges_are_encoded_once_over_all_searches(finished: Path) -> None:
    url = f"sqlite:///{finished / 'work' / 'made' / 'studies.db'}"
    encoded = []
    for name in ("made-surrogate-5", "made-grid-5", "made-TPE-5", "made-TPE-6"):
        with StudyStore.open(url, name, None, exclusive=False) as store:
            for recipe, result in store.scored().values():
                key = json.dumps([dict(g.coefficients) for g in recipe.groups], sort_keys=True)
                if result.tokens:
                    encoded.append(key)
    assert len(encoded) == len(set(encoded))
    assert len(encoded) >= 9  # the grid


def test_a_finished_protocol_reads_nothing_again(finished: Path) -> None:
    before = readings(finished)
    files = {f: f.stat().st_mtime_ns for f in (finished / "work" / "made" / "test").iterdir()}
    run_collection(finished / "quality.yaml", "made")
    assert readings(finished) == before
    assert {f: f.stat().st_mtime_ns for f in (finished / "work" / "made" / "test").iterdir()} == files


def test_test_is_refused_to_another_protocol(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    change(folder / "quality.yaml", significance=0.01)
    with pytest.raises(EvaluationError, match="another protocol"):
        run_collection(folder / "quality.yaml", "made")


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "after",
    [
        pytest.param("surrogate, seed 5", marks=pytest.mark.slow),
        pytest.param("TPE, seed 5", marks=pytest.mark.slow),
        "test: pairs alone",
    ],
)
def test_stopped_anywhere_it_goes_on_to_the_same_scores(finished: Path, tmp_path: Path, after: str) -> None:
    def stop(line: str) -> None:
        if after in line:
            raise _StoppedError

    file = make_protocol(tmp_path)
    with pytest.raises(_StoppedError):
        run_collection(file, "made", stop)
    run_collection(file, "made")

    def scores(folder: Path) -> dict[str, Any]:
        found = (folder / "work" / "made" / "test").glob("*.json")
        return {f.name: json.loads(f.read_text()) for f in found if not f.name.endswith(".names.json")}

    assert scores(tmp_path) == scores(finished)
    assert readings(tmp_path) == readings(finished)


def test_names_have_to_fit(tmp_path: Path) -> None:
    file = make_protocol(tmp_path)
    change(file, uniform=["nobody"])
    with pytest.raises(StudyFileError, match="nobody"):
        read_protocol(file)


def test_a_dev_sample_keeps_the_judgements_of_what_it_keeps(tmp_path: Path) -> None:
    folder = make_beir(tmp_path / "made", n_queries=12, n_documents=40)
    sample = dev_sample(folder, queries=6, judged=1, negatives=2, seed=1)
    assert len(sample.query_ids) == 6
    assert all(any(grades.values()) for grades in sample.qrels.values())
    assert len(sample.doc_ids) <= 6 * 3
    write_beir(sample, tmp_path / "dev")
    again = load_collection("beir", {"folder": "dev"}, name="made", split="dev", relative_to=tmp_path)
    assert again.content_hash == sample.content_hash


def test_titles_are_queries_of_their_texts(tmp_path: Path) -> None:
    make_protocol(tmp_path)
    pairs = training_pairs(tmp_path / "made", "titles", 0)
    assert len(pairs) == 40
    assert all(title.split(" ", 1)[1] == text[:9].strip() for title, text in pairs)


def test_a_corpus_that_is_missing_or_broken_is_said_in_words_before_anything_is_trained(tmp_path: Path) -> None:
    file = make_protocol(tmp_path)
    (tmp_path / "made" / "corpus.jsonl").write_text('{"_id": "1", "title": "no text"}\n', encoding="utf-8")
    with pytest.raises(CollectionError, match="expected 'text'"):
        training_pairs(tmp_path / "made", "titles", 0)
    shutil.rmtree(tmp_path / "made")
    with pytest.raises(CollectionError, match="there is no such file or folder"):
        run_protocol(file)
    assert not read_protocol(file).work.exists()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            'def f(x):\n    """Return the x. Or not."""\n    return x',
            ("Return the x.", "def f(x):\n    \n    return x"),
        ),
        (
            "def f(x):\n    r'''Say what\n    it is :param x: it'''\n    pass",
            ("Say what it is", "def f(x):\n    \n    pass"),
        ),
        ('def f():\n    """Too short."""\n    return 1', None),
        ("def f():\n    return 1", None),
    ],
)
def test_docstrings_are_queries_of_their_code(code: str, expected: tuple[str, str] | None) -> None:
    assert split_docstring(code) == expected
