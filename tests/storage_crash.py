"""Kills a coordinator before every one of its commits: `python -m tests.storage_crash URL [--fresh]`.

For k = 0, 1, … a child process opens a study, begins, leases and finishes a trial, and kills itself right
before commit k, until k is past the last. After each, the study is opened again and the same steps are
repeated. One line of JSON per child: what was found, and which promises were broken. With `--fresh`, `{k}` in
the URL is filled in, so that every child begins with an empty database and creates the tables too.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import sys
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState

from mergesearch.evaluation.result import TrialResult
from mergesearch.storage import StudyRecord, StudyStore, Told
from tests.storage_helpers import RECORD, begin, open_soon, open_store, result


def scores(name: str) -> TrialResult:
    """Scores on queries that no other study has."""
    original = result(1)
    first = replace(original.collections[0], query_ids=tuple(f"{name} {i}" for i in range(3)))
    return replace(original, collections=(first,))


def steps(store: StudyStore) -> Told:
    """What a coordinator does for one trial; safe to repeat."""
    store.adopt()
    trials = store.trials()
    number = trials[0].number if trials else begin(store, 0.5, "the trial")
    if store.result(number) is not None:
        return store.finish(number, scores(store.record.name))
    epoch = store.lease(number, "worker")
    assert epoch is not None
    return store.finish(number, scores(store.record.name), epoch=epoch)


def writes(connection: Any) -> bool:
    """Whether the open transaction changes anything."""
    if isinstance(connection, sqlite3.Connection):
        return connection.in_transaction
    return connection.execute("SELECT pg_current_xact_id_if_assigned()").fetchone()[0] is not None


def die_before_commit(url: str, k: int) -> None:
    """Arms this process: SIGKILL right before commit number `k`, those that write nothing not counted."""
    dialect = type(sa.engine.make_url(url).get_dialect()())
    real = dialect.do_commit
    commits = itertools.count()

    def do_commit(self: Any, connection: Any) -> None:
        if writes(connection.driver_connection) and next(commits) == k:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, connection)

    dialect.do_commit = do_commit  # type: ignore[method-assign]


def inspect(store: StudyStore) -> tuple[str, list[str]]:
    """What a crash left behind, and what of it must not be."""
    trials, unfinished = store.trials(), store.unfinished()
    if not trials:
        return "nothing", ["a recipe without a trial"] if unfinished else []
    broken = ["more than one trial"] if len(trials) > 1 else []
    if trials[0].params != {"alpha.segment_1": 0.5}:
        broken.append("a trial without parameters")
    stored = store.result(0)
    if trials[0].state == TrialState.RUNNING:
        if stored is not None or len(unfinished) != 1:
            broken.append("scores of a running trial, or no recipe for it")
        return "running", broken
    if stored is None or stored.value != trials[0].value or unfinished:
        broken.append("an ended trial without its scores")
    if trials[0].user_attrs.get("tokens") != 1234:
        broken.append("an ended trial without its attributes")
    return "complete", broken


def killed_child(url: str, record: StudyRecord, k: int) -> bool:
    """Runs the steps in a child; True when it was killed on the way."""
    child = os.fork()
    if child == 0:
        die_before_commit(url, k)
        steps(open_store(url, record))
        os._exit(0)  # nothing is closed: dying after the last commit
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(template: str, *, fresh: bool) -> None:
    """Kills, looks, repeats."""
    for k in itertools.count():
        url = template.replace("{k}", str(k)) if fresh else template
        record = replace(RECORD, name=f"study {k}")
        died = killed_child(url, record, k)
        with open_soon(url, record) as store:
            found, broken = inspect(store)
            steps(store)
            again, more = inspect(store)
            broken += more + ([] if again == "complete" else [f"{again} after going on"])
        print(json.dumps({"k": k, "killed": died, "found": found, "violations": broken}))  # noqa: T201
        if not died:
            return


if __name__ == "__main__":
    main(sys.argv[1], fresh="--fresh" in sys.argv)
