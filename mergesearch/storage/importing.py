"""What a study takes over from another one: scored trials, each with its end in one transaction, and a note of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from mergesearch.errors import StorageError
from mergesearch.evaluation.objectives import Judgement
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.storage import schema, scores
from mergesearch.storage.driving import StudyDriver
from mergesearch.storage.patience import patient
from mergesearch.storage.tables import HistoryRow, TrialRow
from mergesearch.storage.transaction import joined, write_new_trial

STARTED = "started from another study"
"""An event of a study's history; its detail names the other one under `study`."""


class StudyImporter(StudyDriver):
    """A study in its database, with what is taken over from another one; `StudyStore` opens it."""

    @patient
    def add_scored(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        *,
        recipe: MergeRecipe,
        attrs: Mapping[str, Any],
        logical_id: str,
        result: TrialResult,
        judged: Judgement = Judgement(),  # noqa: B008  (frozen)
    ) -> bool:
        """Adds a trial together with its end, in one transaction: no worker ever has it, and nobody can take it over.

        A repetition adds nothing, whichever process it comes from.

        Args:
            params: values as Optuna shows them; empty for a trial outside the space.
            distributions: one per parameter.
            recipe: what was evaluated.
            attrs: small user attributes.
            logical_id: unique in the study.
            result: of a whole trial; `result.value` becomes the trial's value.
            judged: what this study's objectives and guards say of it.

        Returns:
            Whether it was added; False where a trial of this logical id is there.

        Raises:
            EvaluationError: a score is NaN or infinite, or there are none.
            StorageError: a parameter does not fit its distribution or those of earlier trials, or an attribute is
                too large.
        """
        value = scores.check(result)
        with self._driving():
            end = self._scored_end(self._presentable(result), judged)

            def write(session: Session, trial: Any) -> None:
                write_new_trial(session, trial.trial_id, template)
                row = self._new_row(trial, recipe, logical_id)
                row.attempts = row.lease_epoch = 0
                session.add(row)
                session.flush()
                end(session, row)
                row.finished_at = sa.func.now()

            try:
                template = self._template(params, distributions, recipe, attrs, logical_id)
                bare = optuna.trial.create_trial(
                    state=TrialState.COMPLETE, values=[*judged.objectives.values()] or [value]
                )
                with joined(self._storage, "trials", write):
                    self._storage.create_new_trial(self._optuna_study_id, bare)
            except IntegrityError:
                with Session(self._storage.engine) as session:
                    if session.scalar(self._trial_rows().where(TrialRow.logical_id == logical_id)) is None:
                        raise
                return False
            except KeyError:
                raise self._deleted() from None
            except ValueError as error:
                raise StorageError(f"trial {logical_id!r} of study {self._row.name!r}: {error}") from None
            return True

    def start_noted(self, study: str) -> dict[str, Any] | None:
        """What `note_start` noted of starting from a study; None where that has not been done to the end."""
        return next((d for _, event, d in self.history() if event == STARTED and d["study"] == study), None)

    @patient
    def note_start(self, study: str, detail: Mapping[str, Any]) -> None:
        """Notes that all was taken over from a study; of several coordinators' notes the first stands."""
        key = f"start:{self._row.uid}"
        with self._driving(), schema.one_at_a_time(self._database, self._storage.engine, key):
            if self.start_noted(study) is None:
                row = HistoryRow(study_id=self._row.id, event=STARTED, detail={**detail, "study": study})
                with Session(self._storage.engine) as session, session.begin():
                    session.add(row)
