"""What a study keeps for optuna-dashboard to show: notes, in Markdown, and figures.

optuna-dashboard keeps both in pieces among a study's attributes and takes a transaction for each piece. Its functions
do the same here, on a copy, and what differs then is written in one transaction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from mergesearch.storage.tables import study_system_attributes

MARKER = "*Below this line mergesearch writes; what you write above it stays.*"
WRITTEN_KEY = "mergesearch:note:"
"""Attribute of a study, followed by Optuna's id of a trial or by nothing: a hash of what was last written there."""


def write_shown(session: Session, study_id: int, notes: Mapping[int | None, str], figures: Mapping[str, Any]) -> None:
    """Keeps notes and figures, in place of earlier ones of ours; what people wrote in a note stays above ours.

    Args:
        session: in a transaction.
        study_id: Optuna's.
        notes: by Optuna's id of a trial, None for the study. Other trials lose the notes that were ours.
        figures: of plotly, by name.
    """
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    table = study_system_attributes
    ours = sa.or_(table.c.key.startswith("dashboard:"), table.c.key.startswith(WRITTEN_KEY))
    if session.get_bind().dialect.name == "sqlite":  # locks the file: a note saved from here on would be overwritten
        session.execute(sa.update(table).where(sa.false()).values(value_json=""))
    rows = session.execute(sa.select(table.c.key, table.c.value_json).where(table.c.study_id == study_id, ours))
    kept = _Kept({row.key: json.loads(row.value_json) for row in rows})
    before = dict(kept.attributes)
    noted = {key.removeprefix(WRITTEN_KEY) for key in before if key.startswith(WRITTEN_KEY)}
    wanted = {"" if trial is None else str(trial): text for trial, text in notes.items()}
    for trial, text in {**dict.fromkeys(noted, ""), **wanted}.items():
        subject = kept.subject(int(trial) if trial else None)
        now = get_note(subject)
        merged = with_ours(now, text, before.get(WRITTEN_KEY + trial))
        if merged != now:
            save_note(subject, merged)
        kept.attributes[WRITTEN_KEY + trial] = digest(text)
    for name, figure in figures.items():
        save_plotly_graph_object(kept.subject(None), figure, graph_object_id=name)
    changed = [
        {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
        for key, value in kept.attributes.items()
        if key not in before or before[key] != value
    ]
    if changed:
        insert = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}[session.get_bind().dialect.name]
        statement: Any = insert(table)
        replacing = {"value_json": statement.excluded.value_json}
        session.execute(statement.on_conflict_do_update(index_elements=["study_id", "key"], set_=replacing), changed)


def with_ours(note: str, ours: str, written: str | None) -> str:
    """A note with our text in place of what we wrote before, and all that is not ours above it.

    Args:
        note: as it is.
        ours: what we have to say; nothing leaves only what others wrote.
        written: `digest` of what we wrote last. Where something else stands in its place, somebody has edited it, and
            it stays as theirs.
    """
    theirs, marker, below = note.rpartition(MARKER) if MARKER in note else (note, "", "")
    if marker and below.strip() and digest(below) != written:
        theirs = f"{theirs.strip()}\n\n{below.strip()}"
    return "\n\n".join(part for part in (theirs.strip(), MARKER if ours else "", ours.strip()) if part)


def digest(text: str) -> str:
    """Of a text, whatever an editor did to the ends of its lines."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class _Kept:
    """As much of Optuna's storage, holding one study's attributes in memory, as optuna-dashboard uses."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:  # noqa: ARG002 - there is one
        return dict(self.attributes)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:  # noqa: ARG002
        self.attributes[key] = value

    def subject(self, trial: int | None) -> Any:
        """What notes and figures can be of: a trial, or the study."""
        study = SimpleNamespace(_storage=self, _study_id=0)
        return SimpleNamespace(_storage=self, storage=self, _study_id=0, study=study, _trial_id=trial)
