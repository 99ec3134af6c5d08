"""Two studies of one model: a coarse one with scored trials, and finer ones that start from it.

`python -m tests.starting_toys URL FOLDER` starts one finer study after the other from the coarse one that `scored`
recorded, each killed before another of its commits, and goes on with it. One line of JSON per study.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from mergesearch import starting
from mergesearch.evaluation.result import IMPORTED_ATTR
from mergesearch.resolving import load_study
from mergesearch.session import open_store
from mergesearch.starting import Brought
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from tests.controller_toys import Bench, ScriptedPool
from tests.storage_crash import die_before_commit
from tests.tiny_studies import TinyStudy, make_study

COARSE = 7
"""Trials of the coarse study, anchors included."""


def make_layers(folder: Path) -> TinyStudy:
    """A study with two segments over four layers and a continuum of points, among which no source alone is."""
    made = make_study(folder, n_layers=4)
    return made.change("merge", "coefficients", "alpha", to={"low": 0.1, "high": 0.9})


def scored(made: TinyStudy, url: str, **search: Any) -> Bench:
    """The coarse study with its trials, whose scores depend on their recipes alone."""
    bench = Bench(load_study(made.file), url).with_search(**(search or {"strategy": "random", "trials": COARSE}))
    bench.drive(ScriptedPool())
    return bench


def finer(made: TinyStudy, name: str, **search: Any) -> Study:
    """A study with four segments that starts from the coarse one."""
    content = {**made.content(), "study": name}
    content["merge"] = {**content["merge"], "groups": {"segments": 4}}
    content["search"] = {"strategy": "random", "trials": 4, "start_from": "tiny", **search}
    file = made.folder / f"{name}.yaml"
    file.write_text(json.dumps(content), encoding="utf-8")
    return load_study(file)


def start(study: Study, store: StudyStore) -> Brought | None:
    """What a session does before any trial; None when there is nothing left to do."""
    with starting.opened(study, store) as other:
        return None if other is None else starting.bring(study, store, other)


def violations(study: Study, store: StudyStore, coarse: StudyStore) -> list[str]:
    """What of the trials that came over, perhaps not all yet, is not as it must be."""
    places = frozenset(study.layout.places)
    theirs = {recipe.prefix_key(places): result for recipe, result in coarse.scored().values()}
    mine, found = store.scored(), []
    trials = store.trials()
    if store.unfinished() or any(t.state != TrialState.COMPLETE for t in trials):
        found.append("a trial without an end")
    keys = []
    for t in trials:
        if t.number not in mine or IMPORTED_ATTR not in t.user_attrs:
            found.append(f"trial {t.number} without scores, or that does not say where from")
            continue
        recipe, result = mine[t.number]
        keys.append(recipe.prefix_key(places))
        same = theirs.get(keys[-1])
        if (
            same is None
            or t.value != same.value
            or result.collections[0].scores.tolist() != (same.collections[0].scores.tolist())
        ):
            found.append(f"trial {t.number} has other scores than the same merge there")
        if t.params and study.recipe(t.params) != recipe:
            found.append(f"trial {t.number} is not the merge of its parameters")
    if len(set(keys)) < len(keys):
        found.append("a merge twice")
    return found


def killed_start(study: Study, url: str, k: int) -> bool:
    """Start in a child that dies before its commit number `k`; True when it did."""
    child = os.fork()
    if child == 0:
        die_before_commit(url, k)
        start(study, open_store(study, url))
        os._exit(0)  # nothing is closed: dying after the last commit
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main(url: str, folder: Path) -> None:
    """Kills, looks, goes on."""
    study = finer(TinyStudy(folder), "finer")
    for k in itertools.count():
        content = study.parsed.content.model_copy(update={"study": f"finer-{k}"})
        here = replace(study, parsed=replace(study.parsed, content=content))
        died = killed_start(here, url, k)
        with open_store(here, url) as store, store.beside("tiny") as coarse:
            left = len(store.trials())
            broken = violations(here, store, coarse)
            start(here, store)
            broken += violations(here, store, coarse)
            complete = len(store.trials())
            if start(here, store) is not None:
                broken.append("started twice")
        print(json.dumps({"killed": died, "left": left, "then": complete, "violations": broken}), flush=True)  # noqa: T201
        if not died:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
