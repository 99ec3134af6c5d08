"""Bad input, end to end: what the program says and ends with, for each way in which input can be bad."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import make_tiny
from tests.tiny_studies import QRELS_HEADER, TinyStudy, copy_study, make_study, mergesearch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def run_once(whole: TinyStudy, tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    study = copy_study(whole, tmp_path_factory.mktemp("run"))
    assert mergesearch("run", study.file).code == 0
    return study


@pytest.fixture
def tiny(whole: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(whole, tmp_path)


@pytest.fixture
def finished(run_once: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(run_once, tmp_path)


def missing_weights(study: TinyStudy) -> None:
    (study.folder / "domain" / "model.safetensors").unlink()


def corrupt_header(study: TinyStudy) -> None:
    (study.folder / "domain" / "model.safetensors").write_bytes(b"\xff" * 64)


def truncated_shard(study: TinyStudy) -> None:
    shutil.rmtree(study.folder / "domain")
    make_tiny("bert", study.folder / "domain", n_layers=2, max_shard_size="20KB")
    shard = max((study.folder / "domain").glob("*.safetensors"), key=lambda f: f.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-100])


def other_shapes(study: TinyStudy) -> None:
    shutil.rmtree(study.folder / "domain")
    make_tiny("bert", study.folder / "domain", n_layers=2, config={"intermediate_size": 64})


def other_layer_count(study: TinyStudy) -> None:
    shutil.rmtree(study.folder / "domain")
    make_tiny("bert", study.folder / "domain", n_layers=3)


def other_vocabulary(study: TinyStudy) -> None:
    shutil.rmtree(study.folder / "domain")
    make_tiny("bert", study.folder / "domain", n_layers=2, words=["entirely", "other"])


def more_than_tensors(study: TinyStudy) -> None:
    folder = study.folder / "domain"
    weights = load_file(folder / "model.safetensors")
    torch.save({**weights, "args": Spoiler()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class Spoiler:
    """An object that no checkpoint of tensors holds."""


def collection_file(name: str, text: str | bytes) -> Callable[[TinyStudy], None]:
    def spoil(study: TinyStudy) -> None:
        content = text if isinstance(text, bytes) else text.encode()
        (study.folder / "collection" / name).write_bytes(content)

    return spoil


def document(record: dict[str, str]) -> Callable[[TinyStudy], None]:
    def spoil(study: TinyStudy) -> None:
        with (study.folder / "collection" / "corpus.jsonl").open("a", encoding="utf-8") as corpus:
            corpus.write(json.dumps(record) + "\n")

    return spoil


def entry(*path: str | int, to: object) -> Callable[[TinyStudy], object]:
    return lambda study: study.change(*path, to=to)


DOMAIN, COLLECTION = "domain: domain", "name: made"


@pytest.mark.parametrize(
    ("spoil", "line", "said"),
    [
        pytest.param(missing_weights, DOMAIN, "safetensors", id="missing weights"),
        pytest.param(corrupt_header, DOMAIN, "model.safetensors", id="corrupt safetensors"),
        pytest.param(truncated_shard, DOMAIN, "-of-", id="truncated shard"),
        pytest.param(other_shapes, DOMAIN, "the template's is [48, 32]", id="other shapes"),
        pytest.param(other_layer_count, DOMAIN, "has 3 layers, the template has 2", id="other layer count"),
        pytest.param(other_vocabulary, DOMAIN, "its tokenizer has", id="other vocabulary"),
        pytest.param(more_than_tensors, DOMAIN, "pytorch_model.bin", id="more than tensors"),
        pytest.param(entry("sources", "domain", to="nowhere/at/all"), "nowhere", "no folder", id="no such source"),
        pytest.param(
            entry("merge", "method", to="linaer"), "linaer", "unknown merge method 'linaer'. Did you mean", id="method"
        ),
        pytest.param(
            entry("merge", "coefficients", to={"alhpa": {"low": 0, "high": 1}}),
            "alhpa",
            "unknown coefficient of linear 'alhpa'. Did you mean 'alpha'?",
            id="coefficient",
        ),
        pytest.param(
            entry("merge", "coefficients", to={"alpha": {"low": 0, "high": 3}}),
            "high: 3",
            "3 is outside of what the method allows, 0 to 1",
            id="outside the method's range",
        ),
        pytest.param(
            collection_file("qrels/dev.tsv", f"{QRELS_HEADER}\ndev0\td999\t1\nnobody\td1\t1\n"),
            COLLECTION,
            "d999",
            id="qrels with unknown ids",
        ),
        pytest.param(
            collection_file("qrels/dev.tsv", f"{QRELS_HEADER}\ndev0\td1\t0\n"),
            COLLECTION,
            "relevant",
            id="no relevant documents",
        ),
        pytest.param(document({"_id": "d99", "title": "", "text": " "}), COLLECTION, "empty", id="empty document"),
        pytest.param(collection_file("qrels/dev.tsv", "dev0\td1\t1\n"), COLLECTION, "header", id="missing header"),
        pytest.param(document({"_id": "d1", "title": "", "text": "x"}), COLLECTION, "d1", id="duplicate ids"),
        pytest.param(
            collection_file("queries.jsonl", '{"_id": "dev0", "text": "Prüfung"}\n'.encode("latin-1")),
            COLLECTION,
            "UTF-8",
            id="wrong encoding",
        ),
    ],
)
def test_what_validate_and_run_refuse(
    tiny: TinyStudy, spoil: Callable[[TinyStudy], object], line: str, said: str
) -> None:
    """Both commands, with the line of the study file, before any weight is loaded or anything is written."""
    spoil(tiny)
    for command in ("validate", "run"):
        answer = mergesearch(command, tiny.file)
        assert answer.code == 2
        assert answer.out == ""
        assert said in answer.err
        assert f"  {tiny.line_of(line)}: " in answer.err
        assert "Traceback" not in answer.err
    assert not (tiny.folder / "study.db").exists()


def test_nan_weights_are_found_when_weights_are_read(tiny: TinyStudy) -> None:
    file = tiny.folder / "domain" / "model.safetensors"
    weights = load_file(file)
    name = "encoder.layer.1.output.dense.weight"
    weights[name][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    assert mergesearch("validate", tiny.file).code == 0
    answer = mergesearch("run", tiny.file)
    assert answer.code == 2
    assert name in answer.err
    assert "domain" in answer.err


def test_all_problems_of_a_study_are_told_together(tiny: TinyStudy) -> None:
    missing_weights(tiny)
    document({"_id": "d1", "title": "", "text": "x"})(tiny)
    tiny.change("search", "strategy", to="tpee")
    answer = mergesearch("validate", tiny.file)
    assert answer.code == 2
    assert ": 3 problems\n" in answer.err


def test_no_disk_space_for_the_export(finished: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_free = shutil._ntuple_diskusage(1 << 30, 1 << 30, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nothing_free)
    answer = mergesearch("export", finished.file, "--out", finished.folder / "merged")
    assert answer.code == 6
    assert "0 MiB are free" in answer.err
    assert not [f for f in finished.folder.iterdir() if "merged" in f.name]


def test_an_export_below_a_file_is_refused(finished: TinyStudy) -> None:
    answer = mergesearch("export", finished.file, "--out", finished.file / "merged")
    assert answer.code == 6
    assert f"{finished.file}/merged" in answer.err
    assert "Traceback" not in answer.err


def test_a_server_that_is_not_there(tiny: TinyStudy) -> None:
    pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    answer = mergesearch("run", tiny.file, "--storage", "postgresql://me:secret@127.0.0.1:1/studies")
    assert answer.code == 4
    assert "cannot be reached" in answer.err
    assert "secret" not in answer.out + answer.err


@pytest.mark.parametrize(
    ("url", "said"),
    [("nonsense", "is not a database URL"), ("mysql://host/db", "not in 'mysql'"), ("sqlite://", "in memory")],
)
def test_a_url_that_names_no_usable_database(tiny: TinyStudy, url: str, said: str) -> None:
    answer = mergesearch("run", tiny.file, "--storage", url)
    assert answer.code == 4
    assert said in answer.err


def test_a_database_that_another_program_writes_to(finished: TinyStudy) -> None:
    other = sqlite3.connect(finished.folder / "study.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    answer = mergesearch("run", finished.file, "--storage", f"{finished.storage}?timeout=0.2", "--trials", 6)
    other.close()
    assert answer.code == 4
    assert "locked" in answer.err


def test_a_study_that_another_process_is_running(finished: TinyStudy) -> None:
    from mergesearch.resolving import load_study
    from mergesearch.session import open_store

    with open_store(load_study(finished.file), finished.storage):
        answer = mergesearch("run", finished.file, "--trials", 6)
    assert answer.code == 4
    assert str(os.getpid()) in answer.err


def test_a_database_that_may_only_be_read(finished: TinyStudy) -> None:
    """Through SQLite's own read-only mode: file permissions do not bind every user who runs tests."""
    url = f"sqlite:///file:{finished.folder}/study.db?mode=ro&uri=true"
    answer = mergesearch("run", finished.file, "--storage", url, "--trials", 6)
    assert answer.code == 4
    assert "read-only" in answer.err
    assert mergesearch("status", finished.file, "--storage", url).code == 0


def test_a_folder_that_cannot_hold_a_database(tiny: TinyStudy) -> None:
    answer = mergesearch("run", tiny.file, "--storage", f"sqlite:///{tiny.file}/study.db")
    assert answer.code == 4
    assert "Traceback" not in answer.err


def test_a_study_name_taken_by_another_file(finished: TinyStudy) -> None:
    other = TinyStudy(finished.folder)
    other.change("merge", "groups", "segments", to=1).change("seed", to=4)
    answer = mergesearch("run", other.file)
    assert answer.code == 4
    assert "study.yaml" in answer.err
    assert "seed" in answer.err
    assert "groups" in answer.err
