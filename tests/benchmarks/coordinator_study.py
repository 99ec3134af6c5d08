"""Studies of thousands of recorded trials, and workers that cost nothing: what is left is the coordinator's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from ruamel.yaml import YAML

from mergesearch.controller import Controller
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.listener import Listener
from mergesearch.recipe import MergeRecipe
from mergesearch.resolving import load_study
from mergesearch.session import open_store
from mergesearch.storage.engine import Database
from mergesearch.study import Study
from mergesearch.workers.pool import Outcome, ScreeningTask, Task, WorkerPool
from tests.tiny_studies import make_study

QUERIES = tuple(f"PLAIN-{i}" for i in range(324))
"""As many as NFCorpus has dev queries: the scores of a trial are two and a half kilobytes."""
SCORES = np.random.default_rng(0).random(len(QUERIES))
PER_TRIAL = ("trial_values", "trial_user_attributes", "trial_system_attributes", "mergesearch_scores")
"""Tables whose rows are copied as they are for every trial that is made up."""


def study_of(folder: Path, *, dimensions: int = 8, values: int | None = None, **search: Any) -> Study:
    """A study of two models of kilobytes with a coefficient per segment: continuous, or one of so many values."""
    tiny = make_study(folder, n_layers=dimensions)
    content = tiny.content()
    content["search"] = search
    content["merge"]["groups"] = {"segments": dimensions}
    listed = {"values": [round(float(v), 4) for v in np.linspace(0, 1, values or 2)]}
    content["merge"]["coefficients"]["alpha"] = listed if values else {"low": 0, "high": 1}
    with tiny.file.open("w", encoding="utf-8") as out:
        YAML().dump(content, out)
    return load_study(tiny.file)


def value_at(params: Mapping[str, float]) -> float:
    """A smooth hill over the points of any space, between 0 and 1."""
    return float(np.exp(-np.mean([(v - 0.3) ** 2 for v in params.values()])))


def scored(recipe: MergeRecipe, worker: str = "made") -> TrialResult:
    """The same scores per query for all recipes, but for a share that is a hill over the recipe's coefficients."""
    weights = {g.name: float(g.coefficients["weight"]["retriever"]) for g in recipe.groups if g.coefficients}  # type: ignore[index]
    collections = (CollectionScores("made", "ndcg@10", QUERIES, SCORES * value_at(weights)),)
    seconds = {"merge": 0.01, "encode": 19.0, "search": 0.3, "score": 0.01}
    return TrialResult(collections, seconds, 100_000, worker, (), 600_000)


class AtOnce(WorkerPool):
    """Workers that answer at once, in turn; `before` is called before every answer with how many there were."""

    def __init__(self, workers: int, before: Callable[[int], None] = lambda _: None) -> None:
        self._names = tuple(f"worker-{i}" for i in range(workers))
        self._tasks: dict[str, Task] = {}
        self._before = before
        self.answers = 0

    @property
    def idle(self) -> tuple[str, ...]:
        return tuple(name for name in self._names if name not in self._tasks)

    def submit(self, task: Task | ScreeningTask, worker: str | None = None) -> str:
        assert isinstance(task, Task)
        name = worker or self.idle[0]
        self._tasks[name] = task
        return name

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        self._before(self.answers)
        self.answers += 1
        name = next(iter(self._tasks))
        task = self._tasks.pop(name)
        return [Outcome(task, name, scored(task.recipe, name))]

    def close(self) -> None:
        self._tasks.clear()


def with_search(study: Study, **search: Any) -> Study:
    """The same study with other settings of its search."""
    content = study.parsed.content
    changed = content.model_copy(update={"search": type(content.search)(**search)})
    return replace(study, parsed=replace(study.parsed, content=changed))


def fill(study: Study, url: str, count: int, seed: int = 1) -> None:
    """Record `count` trials of random points: one as ever, and copies of it with other points and values."""
    if not count:
        return
    one = with_search(study, strategy="random", trials=1, enqueue=[])
    with open_store(one, url) as store:
        Controller(one, store, AtOnce(1), Listener()).run()
        (first,) = store.trials()
    rng = np.random.default_rng(seed)
    dimensions = study.space.dimensions
    points = [study.space.snap({d.name: rng.uniform(d.low, d.high) for d in dimensions}) for _ in range(count - 1)]
    engine = Database.parse(url).engine()
    metadata = sa.MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        copier = _Copier(connection, metadata, first._trial_id)
        for number, params in enumerate(points, 1):
            copier.add(study, number, params)
        copier.write()
    engine.dispose()


class _Copier:
    """Rows of one trial, written again and again with other keys."""

    def __init__(self, connection: sa.Connection, metadata: sa.MetaData, original: int) -> None:
        self._connection, self._tables = connection, metadata.tables
        self._trial = self._rows("trials", "trial_id", original)[0]
        self._params = self._rows("trial_params", "trial_id", original)
        self._ours = self._rows("mergesearch_trials", "optuna_trial_id", original)[0]
        self._others = {
            t: self._rows(t, "trial_id", self._ours["id"] if t.startswith("mergesearch") else original)
            for t in PER_TRIAL
        }
        self._next = {name: self._highest(name) + 1 for name in self._tables if self._key(name) is not None}
        self._new: dict[str, list[dict[str, Any]]] = {}

    def add(self, study: Study, number: int, params: Mapping[str, float]) -> None:
        """One more trial, finished, at a point."""
        recipe, value = study.recipe(params), value_at(params) * float(SCORES.mean())
        trial_id = self._add("trials", {**self._trial, "number": number})
        ours = {
            "number": number,
            "optuna_trial_id": trial_id,
            "logical_id": f"trial:{number}",
            "fingerprint": recipe.fingerprint,
            "recipe": recipe.to_dict(),
            "value": value,
        }
        our_id = self._add("mergesearch_trials", {**self._ours, **ours})
        for row in self._params:
            self._add("trial_params", {**row, "trial_id": trial_id, "param_value": params[row["param_name"]]})
        for table, rows in self._others.items():
            for row in rows:
                changed = {**row, "trial_id": our_id if table.startswith("mergesearch") else trial_id}
                if table == "trial_values":
                    changed["value"] = value
                if row.get("key") == "recipe":
                    changed["value_json"] = f'"{recipe.fingerprint}"'
                self._add(table, changed)

    def write(self) -> None:
        """Insert what was added, and let the database count on from there."""
        for name, rows in self._new.items():
            table, key = self._tables[name], self._key(name)
            self._connection.execute(sa.insert(table), rows)
            sequence = f"SELECT setval(pg_get_serial_sequence('{name}', '{key}'), {self._next[name]})"
            self._connection.execute(sa.text(sequence))

    def _add(self, name: str, row: dict[str, Any]) -> int:
        key, found = self._key(name), self._next[name]
        self._new.setdefault(name, []).append({**row, str(key): found})
        self._next[name] += 1
        return found

    def _rows(self, name: str, column: str, value: int) -> list[dict[str, Any]]:
        table = self._tables[name]
        query = sa.select(table).where(table.c[column] == value)
        return [dict(row._mapping) for row in self._connection.execute(query)]

    def _key(self, name: str) -> str | None:
        columns = [c.name for c in self._tables[name].primary_key.columns]
        return columns[0] if len(columns) == 1 else None

    def _highest(self, name: str) -> int:
        key = self._tables[name].c[str(self._key(name))]
        found = self._connection.scalar(sa.select(sa.func.max(key)))
        return found if isinstance(found, int) else 0
