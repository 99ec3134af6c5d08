"""The trials of a study in memory, kept in step with Optuna's tables, each with a single value.

Optuna's own cache reads every trial in flight anew, with seven statements, whenever it is asked. A coordinator asks
before every proposal, and nearly always one trial has ended and one has begun since: here one statement says which
have, and a second one brings what is new of those.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

from mergesearch.evaluation.objectives import VALUE_ATTR
from mergesearch.storage.tables import studies, trials

TRIALS_AT_ONCE = 500
"""As many are read with one statement; their ids are among its parameters, which databases limit."""


def _part(table: str, place: str, name: str, number: str | None, text: str) -> sa.Select[Any]:
    """One of the tables that hold what trials consist of, as (trial, table, place, name, number, text)."""
    c = sa.table(table, *(sa.column(n) for n in ("trial_id", place, name, number, text) if n is not None)).c
    return sa.select(
        c.trial_id,
        sa.literal_column(f"'{table}'").label("part"),
        c[place].label("place"),
        c[name].cast(sa.Text).label("name"),
        (sa.null() if number is None else c[number]).cast(sa.Double).label("number"),
        c[text].cast(sa.Text).label("text"),
    ).where(c.trial_id.in_(sa.bindparam("ids", expanding=True)))


_CHANGED = (
    sa.select(trials)
    .select_from(
        studies.outerjoin(
            trials,
            (trials.c.study_id == studies.c.study_id)
            & (
                (trials.c.trial_id > sa.bindparam("newest"))
                | trials.c.trial_id.in_(sa.bindparam("open", expanding=True))
            ),
        )
    )
    .where(studies.c.study_id == sa.bindparam("study"))
    .order_by(trials.c.trial_id)
)
"""New trials and those that had no end: one row without a trial where there are none, no row without the study."""

_CONTENTS = sa.union_all(
    _part("trial_params", "param_id", "param_name", "param_value", "distribution_json"),
    _part("trial_values", "trial_value_id", "objective", "value", "value_type"),
    _part(
        "trial_intermediate_values",
        "trial_intermediate_value_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    ),
    _part("trial_user_attributes", "trial_user_attribute_id", "key", None, "value_json"),
    _part("trial_system_attributes", "trial_system_attribute_id", "key", None, "value_json"),
)


class Trials:
    """All trials of one of Optuna's studies.

    What another program changes in a trial while it runs, its attributes for example, is seen when the trial ends.
    """

    def __init__(self, engine: sa.Engine, study_id: int) -> None:
        self._engine = engine
        self._study_id = study_id
        self._known: dict[int, FrozenTrial] = {}  # by Optuna's id
        self._open: set[int] = set()  # ids of those without an end

    def read(self) -> list[FrozenTrial]:
        """The trials as they are now, in number order. Unchanged ones are the same objects; do not change them.

        Raises:
            KeyError: the study was deleted.
        """
        with self._engine.connect() as connection:
            changed = self._changed(connection)
            for start in range(0, len(changed), TRIALS_AT_ONCE):
                some = changed[start : start + TRIALS_AT_ONCE]
                contents = _contents(connection, [row.trial_id for row in some])
                for row in some:
                    self._keep(_frozen(row, contents.get(row.trial_id, {})), row.trial_id)
        return list(self._known.values())

    def _changed(self, connection: sa.Connection) -> list[sa.Row[Any]]:
        """Rows of the trials that are new or in another state than before, in number order.

        Optuna numbers the trials of a study one by one, under a lock, so that ids, numbers and commits agree in order.
        """
        newest = next(reversed(self._known), -1)
        wanted = {"study": self._study_id, "newest": newest, "open": sorted(self._open)}
        rows = connection.execute(_CHANGED, wanted).all()
        if not rows:
            raise KeyError(self._study_id)
        return [r for r in rows if r.trial_id is not None and not self._is_known(r.trial_id, r.state)]

    def _is_known(self, trial_id: int, state: TrialState) -> bool:
        return trial_id in self._known and self._known[trial_id].state == state

    def _keep(self, trial: FrozenTrial, trial_id: int) -> None:
        self._known[trial_id] = trial
        if trial.state.is_finished():
            self._open.discard(trial_id)
        else:
            self._open.add(trial_id)


def _contents(connection: sa.Connection, ids: Sequence[int]) -> dict[int, dict[str, list[tuple[str, Any, str]]]]:
    """By trial and table, (name, number, text) in the order they were written."""
    found: dict[int, dict[str, list[tuple[str, Any, str]]]] = {}
    rows = connection.execute(_CONTENTS, {"ids": list(ids)}).all()
    for trial_id, part, _, name, number, text in sorted(rows, key=itemgetter(2)):
        found.setdefault(trial_id, {}).setdefault(part, []).append((name, number, text))
    return found


def single_value(values: Sequence[float] | None, attrs: Mapping[str, Any]) -> float | None:
    """A trial's value; of one with several objectives the weighted mean over all collections, or else their mean."""
    if not values or len(values) == 1:
        return values[0] if values else None
    mean = attrs.get(VALUE_ATTR)  # missing where another program ended the trial
    return float(mean) if isinstance(mean, int | float) else math.fsum(values) / len(values)


def _frozen(row: sa.Row[Any], parts: dict[str, list[tuple[str, Any, str]]]) -> FrozenTrial:
    params = parts.get("trial_params", [])
    distributions = {name: _distribution(text) for name, _, text in params}
    values = {int(name): _value(number, kind) for name, number, kind in parts.get("trial_values", [])}
    user_attrs = {name: json.loads(text) for name, _, text in parts.get("trial_user_attributes", [])}
    return FrozenTrial(
        number=row.number,
        trial_id=row.trial_id,
        state=row.state,
        value=single_value([values[objective] for objective in sorted(values)], user_attrs),
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params={name: distributions[name].to_external_repr(number) for name, number, _ in params},
        distributions=distributions,
        user_attrs=user_attrs,
        system_attrs={name: json.loads(text) for name, _, text in parts.get("trial_system_attributes", [])},
        intermediate_values={
            int(name): _value(number, kind) for name, number, kind in parts.get("trial_intermediate_values", [])
        },
    )


def _value(number: float | None, kind: str) -> float:
    if number is not None:
        return number
    return {"INF_POS": float("inf"), "INF_NEG": float("-inf")}.get(kind, float("nan"))


@lru_cache(maxsize=1000)
def _distribution(text: str) -> BaseDistribution:
    """Shared by all trials that have it; nobody changes one."""
    return json_to_distribution(text)


def _local(at: datetime | None) -> datetime | None:
    """Optuna keeps UTC and shows local time, both without saying so."""
    return None if at is None else at.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
