"""What a coordinator does to trials: it begins them, gives them to workers, takes them over and ends them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, load_only

from mergesearch.errors import StorageError
from mergesearch.evaluation.objectives import Judgement
from mergesearch.evaluation.result import TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.storage import attributes, opening, scores
from mergesearch.storage.coordinators import Membership, take_over
from mergesearch.storage.engine import Database
from mergesearch.storage.patience import patient
from mergesearch.storage.reader import StudyReader, UnfinishedTrial
from mergesearch.storage.tables import LateResultRow, ScoreRow, StudyRow, TrialRow
from mergesearch.storage.transaction import (
    joined,
    write_constraints,
    write_intermediate_values,
    write_new_trial,
    write_trial_attributes,
)

MOST_LATE_SHOWN = 10
"""Of a trial's late results, as attribute; all of them are kept."""


class Told(enum.Enum):
    """What became of a result or failure that was handed in."""

    RECORDED = "recorded"
    """It is the trial's end now."""
    ALREADY = "already"
    """The same end had been recorded before; nothing changed."""
    LATE = "late"
    """Another end stands, or the lease had passed to somebody else; it was kept aside."""


class _OvertakenError(Exception):
    """Others have begun trials that the caller has not seen."""


class _FencedError(Exception):
    """The lease under which a result was computed has passed to somebody else."""


class StudyDriver(StudyReader):
    """A study in its database, with what its coordinator writes of trials; `StudyStore` opens it."""

    _membership: Membership | None = None

    def __init__(self, database: Database, storage: RDBStorage, optuna_study_id: int, row: StudyRow) -> None:
        """Takes over `storage`, which `close` closes."""
        super().__init__(database, storage, optuna_study_id, row)
        self._keys: dict[int, tuple[int, int]] = {}  # see `_key`
        self._holding: set[tuple[int, int]] = set()  # leases, as number and epoch, that the caller was told it has
        self._distributions: dict[str, BaseDistribution] = {}  # that have been compared with those of earlier trials

    @patient
    def begin(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        *,
        recipe: MergeRecipe,
        attrs: Mapping[str, Any],
        logical_id: str,
        worker: str | None = None,
        after: int | None = None,
    ) -> int | None:
        """Begins a trial and gives it to a worker, in one transaction.

        A repetition after a lost answer gives the number of the trial that was begun then.

        Args:
            params: values as Optuna shows them; empty for a trial outside the space.
            distributions: one per parameter.
            recipe: what is to be evaluated; its fingerprint becomes the attribute `recipe`.
            attrs: small user attributes, such as `anchor` or `proposal`.
            logical_id: the caller's name for the trial, unique in the study.
            worker: who gets its first lease, of epoch 1; None gives none yet.
            after: how many trials `trials` told of when this one was thought of; None does not care.

        Returns:
            The trial's number; None, and nothing was begun, when another coordinator has begun a trial meanwhile,
            after `after` or of this `logical_id`.

        Raises:
            StorageError: `logical_id` is taken by a trial of this coordinator of another recipe, a parameter does not
                fit its distribution or those of earlier trials, or an attribute is too large.
        """
        begun: list[tuple[int, tuple[int, int]]] = []  # number and keys, one per attempt of the transaction
        held_by, leases = self._member.id, 0 if worker is None else 1

        def write(session: Session, trial: Any) -> None:
            # Optuna holds a lock on the study here, so nobody else begins a trial meanwhile.
            if after is not None and trial.number != after + self._queued:
                raise _OvertakenError
            write_new_trial(session, trial.trial_id, template)
            row = self._new_row(trial, recipe, logical_id)
            row.coordinator_id, row.attempts, row.lease_epoch = held_by, leases, leases
            if worker is not None:
                row.lease_owner, row.leased_at = self._text(worker), sa.func.now()
            session.add(row)
            session.flush()
            begun.append((trial.number, (row.id, trial.trial_id)))

        with self._driving():
            try:
                template = self._template(params, distributions, recipe, attrs, logical_id)
                bare = optuna.trial.create_trial(state=TrialState.RUNNING)
                with joined(self._storage, "trials", write):
                    self._storage.create_new_trial(self._optuna_study_id, bare)
            except (IntegrityError, _OvertakenError):
                return self._begun(logical_id, recipe)
            except KeyError:
                raise self._deleted() from None
            except ValueError as error:
                raise StorageError(f"trial {logical_id!r} of study {self._row.name!r}: {error}") from None
            number, self._keys[number] = begun[-1]
            self._holding.add((number, leases))
            return number

    @patient
    def lease(self, number: int, worker: str) -> int | None:
        """Gives a running trial to a worker, once more or at last, and counts the attempt.

        Returns:
            The lease's epoch: hand it to `finish` or `fail`, and only the newest lease can end the trial. None when
            another coordinator has taken the trial over, or it has ended.
        """
        with self._driving():
            with Session(self._storage.engine) as session, session.begin():
                row = session.get_one(TrialRow, self._key(number)[0], with_for_update=True)
                if row.outcome is not None or row.coordinator_id != self._member.id:
                    return None
                row.lease_epoch += 1
                row.attempts += 1
                row.lease_owner = self._text(worker)
                row.leased_at = sa.func.now()
                epoch = row.lease_epoch
            self._holding.discard((number, epoch - 1))
            self._holding.add((number, epoch))
            return epoch

    @patient
    def adopt(self) -> list[UnfinishedTrial]:
        """Takes over the unfinished trials of coordinators that are gone; in number order.

        What their workers may still bring is too late then. Trials that this coordinator holds are not among them.
        """
        with self._driving():
            alone = self._database.is_sqlite
            rows = take_over(self._storage.engine, self._row.id, self._member.id, self._holding, alone=alone)
            self._holding.update((row.number, row.lease_epoch) for row in rows)
            return [UnfinishedTrial.of(row) for row in rows]

    @patient
    def finish(
        self,
        number: int,
        result: TrialResult,
        *,
        epoch: int | None = None,
        gpu_seconds: float = 0.0,
        judged: Judgement = Judgement(),  # noqa: B008  (frozen)
    ) -> Told:
        """Ends a trial with its scores: scores, attributes, value and state in one transaction.

        A trial that was stopped after a look is PRUNED, with its running mean as value. The running means of a trial
        that was scored in looks are its intermediate values, step 1 being the first look.

        Args:
            number: the trial.
            result: what it brought back; `result.value` becomes the trial's value.
            epoch: the lease under which it was evaluated; None where no second lease was ever given.
            gpu_seconds: how long workers were held for it, times their GPUs.
            judged: what the study's objectives and guards say of it; Optuna's tables then hold a value per objective,
                and the guards as its constraints.

        Raises:
            EvaluationError: a score is NaN or infinite, or there are none; the trial keeps running.
        """
        value = scores.check(result)
        state = TrialState.PRUNED if result.stopped else TrialState.COMPLETE
        with self._driving():
            result = self._presentable(result)
            end = self._scored_end(result, judged, gpu_seconds)
            told = self._end(number, state, value, end, epoch, list(judged.objectives.values()))
            if told is Told.LATE:
                self._keep_aside(number, epoch, result.worker, value, "result")
            return told

    @patient
    def fail(self, number: int, reason: str, *, epoch: int | None = None, gpu_seconds: float = 0.0) -> Told:
        """Ends a trial without scores; the reason is kept, its beginning as the attribute `failure`."""
        text = self._text(reason)
        shown = {"failure": text[: attributes.SHORT], **attributes.held(gpu_seconds)}

        def end(session: Session, row: TrialRow) -> None:
            row.outcome, row.reason = opening.OUTCOMES[TrialState.FAIL], text
            write_trial_attributes(session, row.optuna_trial_id, shown)

        with self._driving():
            told = self._end(number, TrialState.FAIL, None, end, epoch)
            if told is Told.LATE:
                self._keep_aside(number, epoch, None, None, f"failure: {text}")
            return told

    @property
    def _member(self) -> Membership:
        if self._membership is None:
            raise StorageError(f"study {self._row.name!r} was opened for reading; open it exclusively to drive it.")
        return self._membership

    @contextmanager
    def _driving(self) -> Iterator[None]:
        with self._guarded():
            assert self._member
            yield

    def _presentable(self, result: TrialResult) -> TrialResult:
        """A result with texts that may be stored."""
        notes = tuple(self._text(note) for note in result.notes)
        return replace(result, worker=self._text(result.worker), notes=notes)

    def _scored_end(
        self, result: TrialResult, judged: Judgement, gpu_seconds: float = 0.0
    ) -> Callable[[Session, TrialRow], None]:
        """What writes a result that was checked, inside the transaction that ends its trial."""
        state = TrialState.PRUNED if result.stopped else TrialState.COMPLETE
        costs, held = attributes.costs(result), attributes.held(gpu_seconds)
        shown = attributes.checked({**costs, **held, **attributes.judged(judged, result.value)})
        looks = [[look.queries, look.mean, look.tokens, look.approximate] for look in result.looks]
        columns = [self._query_sets.columns(c) for c in result.collections]

        def end(session: Session, row: TrialRow) -> None:
            row.outcome, row.value = opening.OUTCOMES[state], result.value
            row.seconds = {phase: float(s) for phase, s in result.seconds.items()}
            row.tokens, row.worker, row.notes = int(result.tokens), result.worker, list(result.notes)
            row.layer_tokens, row.embeddings = int(result.layer_tokens), result.embeddings or None
            row.looks, row.estimate, row.stopped_by = looks or None, result.estimate, result.stopped_by
            row.fusion = result.fusion
            for position, (column, given) in enumerate(zip(columns, result.collections, strict=True)):
                packed = scores.pack_looks(given.looks)
                session.add(ScoreRow(trial_id=row.id, position=position, looks=packed, **column))
            write_trial_attributes(session, row.optuna_trial_id, shown)
            if judged.excess:
                write_constraints(session, row.optuna_trial_id, list(judged.excess.values()))
            write_intermediate_values(session, row.optuna_trial_id, [look.mean for look in result.looks])

        return end

    def _template(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        recipe: MergeRecipe,
        attrs: Mapping[str, Any],
        logical_id: str,
    ) -> FrozenTrial:
        """What a new trial of Optuna's is to hold; a ValueError where that cannot be."""
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=dict(distributions),
            user_attrs={"recipe": recipe.fingerprint, **attributes.checked(attrs)},
            system_attrs={opening.LOGICAL_ID_KEY: logical_id},
        )
        self._check_distributions(distributions)
        return template

    def _new_row(self, trial: Any, recipe: MergeRecipe, logical_id: str) -> TrialRow:
        """Our row of a new trial of Optuna's."""
        return TrialRow(
            study_id=self._row.id,
            logical_id=logical_id,
            optuna_trial_id=trial.trial_id,
            number=trial.number,
            fingerprint=recipe.fingerprint,
            recipe=recipe.to_dict(),
        )

    def _check_distributions(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """As Optuna does for every trial; a study's distributions do not change, so once is enough."""
        for name, distribution in distributions.items():
            if self._distributions.get(name) != distribution:
                for earlier in (t.distributions[name] for t in self._trials.read() if name in t.distributions):
                    check_distribution_compatibility(earlier, distribution)
                    break
                self._distributions[name] = distribution

    def _begun(self, logical_id: str, recipe: MergeRecipe) -> int | None:
        """The trial of this coordinator that has the logical id: it was begun, and the answer was lost."""
        with Session(self._storage.engine) as session:
            row: TrialRow | None = session.scalar(self._trial_rows().where(TrialRow.logical_id == logical_id))
        if row is None or row.coordinator_id != self._member.id:
            return None
        if row.fingerprint != recipe.fingerprint:
            raise StorageError(f"the logical id {logical_id!r} of study {self._row.name!r} names another trial.")
        self._holding.add((row.number, row.lease_epoch))
        return row.number

    def _end(
        self,
        number: int,
        state: TrialState,
        value: float | None,
        end: Callable[[Session, TrialRow], None],
        epoch: int | None,
        objectives: list[float] | None = None,
    ) -> Told:
        row_id, trial_id = self._key(number)

        def write(session: Session, _trial: Any) -> None:
            needed = load_only(TrialRow.optuna_trial_id, TrialRow.lease_epoch)  # and not the recipe
            row = session.get_one(TrialRow, row_id, options=[needed], with_for_update=True)
            if epoch is not None and row.lease_epoch != epoch:
                raise _FencedError
            end(session, row)
            row.finished_at = sa.func.now()

        try:
            with joined(self._storage, "trials", write):
                values = None if value is None else objectives or [value]
                recorded = self._storage.set_trial_state_values(trial_id, state, values)
        except _FencedError:
            return Told.LATE
        except UpdateFinishedTrialError:
            return self._compare_with_end(number, state, value)
        except KeyError:
            raise self._deleted() from None
        finally:
            self._holding.discard((number, epoch or 0))
        if not recorded:
            raise StorageError(f"the end of trial {number} contradicts what is stored of it.")
        return Told.RECORDED

    def _compare_with_end(self, number: int, state: TrialState, value: float | None) -> Told:
        row_id, trial_id = self._key(number)
        opening.adopt_outcome(self._storage.engine, row_id, self._storage.get_trial(trial_id))
        row = self._trial(number)
        return Told.ALREADY if (row.outcome, row.value) == (opening.OUTCOMES[state], value) else Told.LATE

    def _key(self, number: int) -> tuple[int, int]:
        """Our id of a trial and Optuna's, which never change."""
        if number not in self._keys:
            row = self._trial(number)
            self._keys[number] = row.id, row.optuna_trial_id
        return self._keys[number]

    def _keep_aside(self, number: int, epoch: int | None, worker: str | None, value: float | None, reason: str) -> None:
        trial = self._trial(number)
        late = LateResultRow(trial_id=trial.id, epoch=epoch, worker=worker, value=value, reason=reason)
        with Session(self._storage.engine) as session, session.begin():
            session.get_one(TrialRow, trial.id, with_for_update=True)
            query = sa.select(LateResultRow).where(LateResultRow.trial_id == trial.id)
            kept = list(session.scalars(query.order_by(LateResultRow.id)))
            if any((k.epoch, k.worker, k.value, k.reason) == (epoch, worker, value, reason) for k in kept):
                return  # kept before, and only the confirmation was lost
            session.add(late)
            shown = [{"lease": k.epoch, "worker": k.worker, "value": k.value} for k in (*kept, late)]
            # Written past Optuna, which takes no attributes of trials that have ended.
            write_trial_attributes(session, trial.optuna_trial_id, {"late_results": shown[-MOST_LATE_SHOWN:]})
