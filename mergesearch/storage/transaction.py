"""Our rows inside the transactions of Optuna's storage.

Optuna commits once per call of its storage. `joined` adds our writes to that commit, so that a trial and what
we know of it begin and end together: no crash, and no connection cut at any moment, can part them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from mergesearch.storage.tables import (
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
)

CONSTRAINTS_KEY = "constraints"
"""System attribute where every version of Optuna looks for the constraints of a trial."""


@contextmanager
def joined(storage: optuna.storages.RDBStorage, table: str, write: Callable[[Session, Any], None]) -> Iterator[None]:
    """While open, a transaction of `storage` on this thread that writes to `table` includes `write`.

    Optuna may read on the way, in transactions of their own; those are left alone. When it repeats a
    transaction whose commit was not confirmed, `write` is part of the repetition too.

    Args:
        storage: makes the transaction, in one call of a public method.
        table: one of Optuna's tables.
        write: takes the session and Optuna's object that is written, flushed and so with its ids; may raise
            to roll everything back.
    """
    session = storage.scoped_session()  # one object per thread; Optuna uses the same
    joined_in = False

    def before_commit(session: Session) -> None:
        nonlocal joined_in
        written = [o for o in (*session.new, *session.dirty) if getattr(o, "__tablename__", None) == table]
        if written:
            joined_in = True
            session.flush()
            write(session, written[0])

    sa.event.listen(session, "before_commit", before_commit)
    try:
        yield
    finally:
        sa.event.remove(session, "before_commit", before_commit)
    if not joined_in:
        raise RuntimeError(f"this version of Optuna wrote to {table!r} in a way that mergesearch cannot follow")


def write_trial_attributes(session: Session, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Sets user attributes of a trial of Optuna's, replacing those of the same keys."""
    if not attributes:
        return
    insert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[session.get_bind().dialect.name]
    statement: Any = insert(trial_user_attributes)
    replacing = {"value_json": statement.excluded.value_json}
    statement = statement.on_conflict_do_update(index_elements=["trial_id", "key"], set_=replacing)
    session.execute(statement, _attribute_rows(trial_id, attributes))


def write_new_trial(session: Session, trial_id: int, template: FrozenTrial) -> None:
    """Adds parameters and attributes to a trial that Optuna has just made without any.

    Optuna would look up the trial, and an earlier trial's distribution, for every single one of them.
    """
    params = [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distribution.to_internal_repr(template.params[name]),
            "distribution_json": distribution_to_json(distribution),
        }
        for name, distribution in template.distributions.items()
    ]
    attributes = ((trial_user_attributes, template.user_attrs), (trial_system_attributes, template.system_attrs))
    for table, rows in [(trial_params, params), *((t, _attribute_rows(trial_id, a)) for t, a in attributes)]:
        if rows:
            session.execute(sa.insert(table), rows)


def write_intermediate_values(session: Session, trial_id: int, values: Sequence[float]) -> None:
    """Sets the intermediate values of a trial of Optuna's, which are finite, at the steps from 1 on."""
    if not values:
        return
    table = trial_intermediate_values
    session.execute(sa.delete(table).where(table.c.trial_id == trial_id))
    rows = [
        {"trial_id": trial_id, "step": step, "intermediate_value": value, "intermediate_value_type": "FINITE"}
        for step, value in enumerate(values, 1)
    ]
    session.execute(sa.insert(table), rows)


def write_constraints(session: Session, trial_id: int, values: Sequence[float]) -> None:
    """Sets what Optuna takes for the constraints of a trial: broken where positive."""
    table = trial_system_attributes
    session.execute(sa.delete(table).where(table.c.trial_id == trial_id, table.c.key == CONSTRAINTS_KEY))
    session.execute(sa.insert(table), _attribute_rows(trial_id, {CONSTRAINTS_KEY: list(values)}))


def _attribute_rows(trial_id: int, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": k, "value_json": json.dumps(v)} for k, v in attributes.items()]
