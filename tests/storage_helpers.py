"""A study to store, and ways to break its database."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, FloatDistribution

from mergesearch.errors import StorageError
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef
from mergesearch.storage import StudyRecord, StudyStore

DISTRIBUTIONS: dict[str, BaseDistribution] = {"alpha.segment_1": FloatDistribution(0, 1)}
ROOT = Path(__file__).resolve().parents[1]

RECORD = StudyRecord(
    name="study",
    score_relevant={
        "seed": 7,
        "dtype": "float32",
        "normalize": True,
        "sources": [
            {"name": "retriever", "content_hash": "aa", "revision": None},
            {"name": "domain", "content_hash": "bb", "revision": None},
        ],
        "collections": {"nfcorpus": {"split": "dev", "hash": "cc"}},
        "batches": [32, 16],
    },
    other={"budget": {"trials": 10}, "strategy": "tpe"},
    study_file="study: study\n",
    file_name="study.yaml",
    versions={"torch": "2.13.0"},
)


def recipe(alpha: float) -> MergeRecipe:
    """A small linear merge."""
    sources = (SourceRef("retriever", "/r", "aa"), SourceRef("domain", "/d", "bb"))
    group = GroupRecipe("segment_1", ("layer.0",), coefficients={"weight": {"retriever": alpha, "domain": 1 - alpha}})
    return MergeRecipe("linear", sources, "retriever", (group,), options={"normalize": False})


def result(seed: int = 0, *, tokens: int = 1234) -> TrialResult:
    """Scores of two collections with all 53 bits in use."""
    rng = np.random.default_rng(seed)
    first = CollectionScores("nfcorpus", "ndcg@10", ("q1", "q2", "ä\x00\ud800"), rng.random(3), weight=2.0)
    second = CollectionScores("scifact", "ndcg@10", ("1", "2"), rng.random(2) / 3)
    seconds = {"merge": 0.1, "encode": 2.25, "search": 0.3, "score": 1e-4}
    return TrialResult((first, second), seconds, tokens, worker="worker-1", notes=("batch 3 was split",))


def begin(store: StudyStore, alpha: float, logical_id: str, **attrs: Any) -> int:
    """Begins a trial of `recipe(alpha)`, which nobody else begins."""
    number = try_to_begin(store, alpha, logical_id, **attrs)
    assert number is not None
    return number


def try_to_begin(
    store: StudyStore, alpha: float, logical_id: str, *, after: int | None = None, **attrs: Any
) -> int | None:
    """Begins a trial of `recipe(alpha)` unless somebody was faster."""
    params = {"alpha.segment_1": alpha}
    return store.begin(params, DISTRIBUTIONS, recipe=recipe(alpha), attrs=attrs, logical_id=logical_id, after=after)


def open_store(url: str, record: StudyRecord | None = RECORD, *, exclusive: bool = True) -> StudyStore:
    """Opens the study of `record`."""
    return StudyStore.open(url, record.name if record else "study", record, exclusive=exclusive)


def everything_stored(url: str) -> str:
    """Every value of every table, as one text."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    metadata = sa.MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
        texts = [str(row) for t in metadata.sorted_tables for row in connection.execute(sa.select(t))]
    engine.dispose()
    return "\n".join(texts)


def crashes(module: str, *arguments: str) -> list[dict[str, Any]]:
    """What a module that is killed again and again tells of each attempt: no violations, and only the last one ends."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    outcomes: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [o for o in outcomes if o["violations"]] == []
    assert [o["killed"] for o in outcomes] == [True] * (len(outcomes) - 1) + [False]
    return outcomes


def check_crashes(*arguments: str) -> None:
    """Runs `tests.storage_crash`: no violations, and the moments that matter were among the kills."""
    outcomes = crashes("tests.storage_crash", *arguments)
    found = [o["found"] for o in outcomes]
    assert found == sorted(found, key=("nothing", "running", "complete").index)
    assert min(found.count("nothing"), found.count("running")) >= 2


def open_soon(url: str, record: StudyRecord = RECORD) -> StudyStore:
    """A server needs a moment to notice that a client is gone."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return open_store(url, record)
        except StorageError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def lose_confirmation(store: StudyStore, *, after: int) -> None:
    """The database's commit number `after` happens, and its confirmation never arrives."""
    engine = store._storage.engine
    dialect = engine.dialect
    real = type(dialect).do_commit
    left = after

    def do_commit(connection: Any) -> None:
        nonlocal left
        real(dialect, connection)
        left -= 1
        if left == -1:
            if dialect.name != "sqlite":
                connection.driver_connection.close()
            raise dialect.loaded_dbapi.OperationalError("server closed the connection unexpectedly")

    dialect.do_commit = do_commit  # type: ignore[method-assign]


def restore_confirmations(store: StudyStore) -> None:
    """Ends what `lose_confirmation` began."""
    store._storage.engine.dialect.__dict__.pop("do_commit", None)
