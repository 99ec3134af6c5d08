"""What holds of a study that has come to its end, whatever happened on the way."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from mergesearch.storage.store import StudyStore
from tests.chaos.world import World
from tests.commands import Row, read_table, run_command
from tests.tiny_studies import TinyStudy

STARTUP_TRIALS = 8
"""Of TPE in these studies: so many numbers have points that depend on nothing else."""
_CHOSEN = re.compile(r"^chosen: .*?(?=^next: )", re.MULTILINE | re.DOTALL)
OUTCOMES = {"complete": "COMPLETE", "pruned": "PRUNED", "fail": "FAIL"}


def undisturbed(study: TinyStudy, folder: Path) -> list[Row]:
    """The trials of the same study when nothing happens to it."""
    url = f"sqlite:///{folder}/undisturbed.db"
    run_command(["run", study.file, "--storage", url], folder / "undisturbed.log")
    return read_table(url)


Likeness = Literal["equal", "points", "start"]
"""In what a study has to be the undisturbed one: in everything, which takes one coordinator at a time and one worker;
in the set of its points and their scores, as a grid of several coordinators; or in its first points, which a strategy
that learns proposes by their numbers alone."""


def violations(world: World, expected: list[Row], like: Likeness) -> list[str]:
    """What of the promise was broken, empty when nothing was, once a study has come to its end."""
    table = read_table(world.url)
    found = [str(said) for (said,) in world.query("SELECT said FROM chaos_violations")]
    found += _disagreements(world)
    found += _left_behind(world)
    numbers = [number for number, *_ in table]
    if numbers != list(range(len(table))):
        found.append(f"numbers with holes: {numbers}")
    if unended := [number for number, state, *_ in table if state != "COMPLETE"]:
        found.append(f"not complete: {unended}")
    if len(table) != len(expected):
        found.append(f"{len(table)} trials, {len(expected)} in the undisturbed study")
    if like == "points":
        found += _other_points(table, expected)
    else:
        same = len(expected) if like == "equal" else STARTUP_TRIALS
        differing = [(a, b) for a, b in zip(table[:same], expected[:same], strict=False) if a != b]
        if differing:
            found.append(f"{len(differing)} trials differ from the undisturbed study, the first: {differing[0]}")
    found += _other_winners(world)
    return found


def late_results(world: World) -> int:
    """How many results were kept aside."""
    return int(str(world.query("SELECT count(*) FROM mergesearch_late_results")[0][0]))


def _disagreements(world: World) -> list[str]:
    """Where Optuna's rows and ours do not agree one to one."""
    theirs: list[Any] = world.query(
        "SELECT t.trial_id, t.number, t.state::text, v.value, count(v.value) OVER (PARTITION BY t.trial_id), "
        "(SELECT value_json FROM trial_system_attributes a WHERE a.trial_id = t.trial_id "
        "AND a.key = 'mergesearch:logical_id'), (SELECT count(*) FROM trial_params p WHERE p.trial_id = t.trial_id) "
        "FROM trials t LEFT JOIN trial_values v ON v.trial_id = t.trial_id ORDER BY t.trial_id"
    )
    ours: list[Any] = world.query(
        "SELECT t.optuna_trial_id, t.number, t.outcome, t.value, t.logical_id, t.lease_epoch, t.attempts, "
        "(SELECT count(*) FROM mergesearch_scores s WHERE s.trial_id = t.id) "
        "FROM mergesearch_trials t ORDER BY t.optuna_trial_id"
    )
    found = []
    if [row[0] for row in theirs] != [row[0] for row in ours]:
        return [f"Optuna has trials {[row[0] for row in theirs]}, we have {[row[0] for row in ours]}"]
    parameters = max(row[6] for row in theirs)
    for their, our in zip(theirs, ours, strict=True):
        _, number, state, value, values, logical_id, params = their
        if (number, state, value, values, json.loads(logical_id)) != (
            our[1],
            OUTCOMES.get(our[2]),
            our[3],
            1,
            our[4],
        ):
            found.append(f"trial {number}: Optuna says {their}, we say {our}")
        if our[7] != 1:
            found.append(f"trial {number} has scores of {our[7]} collections, not of one")
        if params not in (0, parameters):
            found.append(f"trial {number} has {params} of {parameters} parameters")
    repeated = [logical_id for logical_id, count in Counter(row[4] for row in ours).items() if count > 1]
    return found + ([f"begun twice: {repeated}"] if repeated else [])


def _left_behind(world: World) -> list[str]:
    """Leases, transactions and locks that outlived the study."""
    found = []
    if leases := world.query("SELECT number, lease_owner FROM mergesearch_trials WHERE outcome IS NULL"):
        found.append(f"leases left: {leases}")
    with StudyStore.open(world.url, "tiny", None, exclusive=False) as store:
        if unfinished := store.unfinished():
            found.append(f"unfinished: {[u.number for u in unfinished]}")
    return found


def _other_points(table: list[Row], expected: list[Row]) -> list[str]:
    """Where the points and their values are not the undisturbed ones, whatever their order."""
    found = []
    points = Counter(json.dumps(params, sort_keys=True) for _, _, params, *_ in table if params)
    if twice := [point for point, count in points.items() if count > 1]:
        found.append(f"points more than once: {twice}")

    def by_recipe(rows: list[Row]) -> set[tuple[str, float | None, str]]:
        return {(json.dumps(params, sort_keys=True), value, recipe) for _, _, params, value, recipe in rows}

    missing, more = by_recipe(expected) - by_recipe(table), by_recipe(table) - by_recipe(expected)
    if missing or more:
        found.append(f"missing: {missing}; not expected: {more}")
    return found


def _other_winners(world: World) -> list[str]:
    """Coordinators that came to the end have to agree on who is best."""
    said = {match[-1] for seat in world.seats if seat.ended and (match := _CHOSEN.findall(seat.output))}
    return [f"winners differ: {said}"] if len(said) > 1 else []
