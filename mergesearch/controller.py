"""Ask, dispatch, tell: the only code that knows both search and workers.

A logical trial is created with its recipe and its lease in the database before any worker sees it, and ends there
exactly once. Several coordinators may drive one study: each trial is thought of in full knowledge of all that were
begun before it, and when another coordinator was faster, what it began is read first and the strategy asked again. A
process that dies leaves RUNNING trials behind; the others, or the next one, take them over.

Equal recipes are never evaluated twice: one that has a score shares it, and one that a worker holds is waited
for before another trial is begun with it.
"""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ParamSpec

from optuna.trial import FrozenTrial, TrialState

from mergesearch.anchors import ANCHOR_ATTR, LABEL_CHARACTERS, Anchors, anchor_attrs
from mergesearch.budget import Budget
from mergesearch.errors import EvaluationError, WorkerError
from mergesearch.evaluation.result import TrialResult
from mergesearch.flight import Flight, OpenTrial
from mergesearch.judging import NO_TEMPLATE, Judge
from mergesearch.listener import Listener, Summary
from mergesearch.predicting import Predictor
from mergesearch.recipe import MergeRecipe
from mergesearch.rivals import Rivals
from mergesearch.search.ledger import violation
from mergesearch.search.registry import Strategy
from mergesearch.storage.driving import Told
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.study_recipes import Anchor
from mergesearch.surrogate.report import ScreeningReport
from mergesearch.surrogate.screening import Screening
from mergesearch.workers.pool import Outcome, Task, WorkerPool

P = ParamSpec("P")
logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 5
"""A study whose trials all fail is stopped: whatever is wrong, more trials will not mend it. Failures that a recipe
is to blame for do not count: the next recipe may do well, and a grid is to reach its end."""
MAX_FRUITLESS_IN_A_ROW = 50
"""A strategy that proposes nothing but known recipes, or ones that can get no score, has used up its space."""
ALLOWED_INTERRUPTIONS = 3
"""Beyond `retries`, so often a trial may have been begun and not ended by earlier processes. Whoever presses Ctrl-C
uses up one as well as a trial that takes its whole process along, and the two cannot be told apart."""
POLL_SECONDS = 2.0
"""So often a coordinator looks what others did while it has nothing to do itself."""


class Controller:
    """Drives one study with one pool of workers until its budget, its strategy or its user ends it."""

    def __init__(self, study: Study, store: StudyStore, pool: WorkerPool, listener: Listener) -> None:
        self._store = store
        self._pool = pool
        self._listener = listener
        self._study = study
        self._search = study.parsed.content.search
        self._strategy: Strategy = study.strategy()
        self._strategy.screener = self._screen
        self._budget = Budget(self._search)
        self._flight = Flight(study.parsed.content.workers.gpus)
        self._predictor = Predictor(store, pool, self._search.retries, self._settle_all, self._flight.forget)
        self._distributions = study.space.distributions()
        self._judge = Judge(study, store)
        self._rivals = Rivals(store, study.racing.rivals) if study.racing is not None else None
        self._summary = Summary("")
        self._looked = -math.inf  # when trials left behind were looked for
        self._seen: tuple[int, int] | None = None  # how far the history went when nothing could be begun
        self._waited_for = ""
        self._failures = 0
        self._fruitless = 0
        self._best = -math.inf

    def run(self) -> Summary:
        """Evaluate until done. KeyboardInterrupt passes through; nothing recorded is lost by it.

        Raises:
            WorkerError: workers cannot be kept alive, or trial after trial fails.
            StorageError: the database went away.
        """
        self._budget.start()
        self._learn()
        try:
            while self._step():
                pass
        finally:
            self._summary.seconds = self._budget.seconds
        return self._summary

    def _step(self) -> bool:
        """Begin a trial, or wait until something happens; False at the study's end."""
        wanted = self._store.wanted
        if wanted == "stop":
            self._summary.reason = "stopped, as was asked for"
            return False
        self._take_over()
        free, flying, news = self._pool.free, self._flight.flying, False
        if wanted == "run" and free:
            # Predictions take long, and the others are not to wait for them.
            shy = self._summary.overtaken > 0 and not self._strategy.needs_embeddings
            with self._store.turn() if shy else nullcontext():
                history = self._store.trials()
                extent = _extent(history)
                news = extent != self._seen
                if (news or self._flight.waiting) and self._dispatch_next(history):
                    return True
            self._seen = extent
        if self._flight.flying < flying:
            return True  # trials ended while merges were predicted, which may have taught the strategy more
        if self._flight.flying:
            self._settle_all(self._pool.wait(POLL_SECONDS))
            return True
        if wanted == "drain":
            self._summary.reason = "ended, as was asked for"
            return False
        used_up = self._budget.used_up(self._store.trials(), self._flight.gpu_seconds())
        if wanted == "pause":
            file = shlex.quote(str(self._study.parsed.path))
            self._wait_for(f"paused, as was asked for; to go on: mergesearch control {file} go")
        elif self._budget.out_of_time:
            self._summary.reason = used_up
            return False
        elif not free and (self._flight.waiting or not used_up):  # a worker is being rebuilt, or a node to come
            self._settle_all(self._pool.wait(POLL_SECONDS))
        elif others := [c for c in self._store.coordinators() if c.trials]:
            count = sum(c.trials for c in others)
            trials = "1 trial" if count == 1 else f"{count} trials"
            self._wait_for(f"waiting for {trials} of {'; '.join(map(str, others))}")
        else:
            self._summary.reason = used_up or self._summary.reason
            return free > 0 and news  # what the others ended between two looks may have taught the strategy more
        return True

    def _wait_for(self, what: str) -> None:
        if what != self._waited_for:
            self._tell(self._listener.waiting, what)
        self._waited_for = what
        self._pool.rest(POLL_SECONDS)

    def _learn(self) -> None:
        """What earlier processes and other coordinators have recorded."""
        history = self._store.trials()
        complete = [t for t in history if t.state == TrialState.COMPLETE and not violation(t)]
        values = [t.value for t in complete if t.value is not None]
        self._best = max(values, default=-math.inf)
        self._anchors = Anchors(self._study, history)

    def _take_over(self) -> None:
        """Take over trials whose coordinator is gone; they come before any new one."""
        if time.monotonic() - self._looked < POLL_SECONDS:
            return
        self._looked = time.monotonic()
        unfinished = self._store.adopt()
        if not unfinished:
            return
        self._summary.adopted += len(unfinished)
        known = {t.number: t.user_attrs for t in self._store.trials()}
        for left in unfinished:
            attrs = known.get(left.number, {})
            task, label = Task(left.number, left.recipe), str(attrs.get("label", ""))
            raced = self._races(anchor=ANCHOR_ATTR in attrs)
            trial = OpenTrial(task, label, left.recipe.fingerprint, raced, left.epoch)
            if left.attempts > self._search.retries + ALLOWED_INTERRUPTIONS:
                reason = f"begun {left.attempts} times, it never ended: it may be what ends its process each time"
                self._fail(trial, reason, recipe_at_fault=True)
            else:
                self._flight.waiting.append(trial)

    def _dispatch_next(self, history: Sequence[FrozenTrial]) -> bool:
        """Start one trial, or end one that needs no worker; False when an outcome has to be waited for."""
        if self._flight.waiting:
            return self._start_waiting(history)
        self._summary.reason = self._budget.used_up(history, self._flight.gpu_seconds())
        if self._summary.reason:
            return False
        anchor = self._anchors.next(history)
        if not self._judge.ready and (anchor is None or self._study.anchored(anchor[0]) != self._study.measure):
            self._summary.reason = NO_TEMPLATE  # unless a worker is at it
            return False
        if anchor is not None:
            return self._begin_anchor(*anchor, history)
        self._summary.reason = self._exhausted(history)
        if self._summary.reason:
            return False
        number = len(history)
        worker = self._pool.idle[0]
        last = self._flight.last(worker)
        near = next((t.params for t in reversed(history) if t.number == last), None)  # others may have taken numbers
        proposal = self._strategy.propose_near(history, number, near)
        if proposal is None:
            self._summary.reason = "the strategy has nothing left to propose"  # unless trials in flight teach it
            return False
        if not self._pool.idle:  # all were lost during a prediction
            return True
        if worker not in self._pool.idle:  # it died of a prediction
            worker = self._pool.idle[0]
        label = self._study.space.label(proposal.params)
        attrs = {"label": label[:LABEL_CHARACTERS], "proposal": proposal.attrs, **proposal.shown}
        recipe = self._study.recipe(proposal.params)
        return self._begin(f"trial:{number}", proposal.params, recipe, attrs, history, worker)

    def _exhausted(self, history: Sequence[FrozenTrial]) -> str:
        """Why the strategy need not be asked; empty when it is to be."""
        if self._strategy.exhausted(history):
            return self._strategy.exhausted_because
        # A strategy that knows its number of points comes to its end by itself, and is to reach it.
        if self._fruitless >= MAX_FRUITLESS_IN_A_ROW and self._strategy.planned() is None:
            return f"the last {self._fruitless} proposals were known before or can get no score"
        return ""

    def _begin_anchor(self, anchor: Anchor, failures: int, history: Sequence[FrozenTrial]) -> bool:
        recipe = self._study.anchored(anchor)
        attrs = anchor_attrs(anchor, recipe)
        return self._begin(f"anchor:{recipe.fingerprint}:{failures}", anchor.params or {}, recipe, attrs, history)

    def _begin(
        self,
        logical_id: str,
        params: Mapping[str, float],
        recipe: MergeRecipe,
        attrs: dict[str, Any],
        history: Sequence[FrozenTrial],
        worker: str | None = None,
    ) -> bool:
        """Record a new trial and start it; False, and nothing is recorded, while a worker holds its recipe."""
        fingerprint = recipe.fingerprint
        if self._flight.is_held(fingerprint, history):
            return False
        raced = self._races(anchor=ANCHOR_ATTR in attrs)
        known = self._known(fingerprint, history, raced=raced)
        if known is not None:
            attrs, worker = {**attrs, "duplicate_of": known[0]}, None
        elif worker is None:
            worker = self._pool.idle[0]
        distributions = {k: v for k, v in self._distributions.items() if k in params}
        number = self._store.begin(
            params, distributions, recipe=recipe, attrs=attrs, logical_id=logical_id, worker=worker, after=len(history)
        )
        if number is None:  # another coordinator was faster: what it began is to be known first
            self._summary.overtaken += 1
            return True
        trial = OpenTrial(Task(number, recipe), attrs["label"], fingerprint, raced)
        if worker is None:
            assert known is not None
            self._share(trial, *known)
        else:
            self._submit(replace(trial, epoch=1), worker, history)
        return True

    def _start_waiting(self, history: Sequence[FrozenTrial]) -> bool:
        """Start the first trial that waits, except for those whose recipe a worker holds."""
        for trial in self._flight.waiting:
            if not self._flight.is_held(trial.fingerprint, history, before=trial.number):
                self._flight.waiting.remove(trial)
                known = self._known(trial.fingerprint, history, raced=trial.raced)
                if known is not None:
                    self._share(trial, *known)
                    return True
                worker = self._pool.idle[0]
                epoch = self._store.lease(trial.number, worker)
                if epoch is None:
                    self._lost(trial)
                else:
                    self._submit(replace(trial, epoch=epoch), worker, history)
                return True
        return False

    def _races(self, *, anchor: bool) -> bool:
        return self._rivals is not None and not anchor

    def _known(
        self, fingerprint: str, history: Sequence[FrozenTrial], *, raced: bool
    ) -> tuple[int, TrialResult] | None:
        """What a trial of an equal recipe brought back; one that was stopped settles only those that may be stopped."""
        if not any(t.user_attrs.get("recipe") == fingerprint and t.state.is_finished() for t in history):
            return None
        return self._store.value_of(fingerprint) or (self._store.stopped(fingerprint) if raced else None)

    def _share(self, trial: OpenTrial, original: int, result: TrialResult) -> None:
        """End a trial with what an equal recipe brought back."""
        result = replace(result, seconds={}, tokens=0, layer_tokens=0, worker="reused", notes=())
        judged = self._judge.of(trial.fingerprint, result)
        if self._store.finish(trial.number, result, epoch=trial.epoch, judged=judged) is Told.LATE:
            self._lost(trial)
            return
        self._summary.reused += 1
        self._fruitless += 1
        if result.stopped:
            self._tell(self._listener.pruned, trial.number, trial.label, result)
        else:
            self._tell(self._listener.reused, trial.number, trial.label, result.value, original)

    def _submit(self, trial: OpenTrial, worker: str, history: Sequence[FrozenTrial]) -> None:
        """Give a trial to the worker that has its lease."""
        if self._rivals is not None and trial.raced:
            trial.task = replace(trial.task, rivals=self._rivals.best(history))
        self._pool.submit(trial.task, worker)
        self._flight.start(trial, worker)
        self._tell(self._listener.started, trial.number, trial.label)

    def _lost(self, trial: OpenTrial) -> None:
        reason = "another coordinator took it over or ended it; what came too late is kept aside"
        self._tell(self._listener.failed, trial.number, trial.label, reason, retried=False)

    def _screen(self, screening: Screening) -> ScreeningReport:
        """Have a worker predict merges; trials that end meanwhile are recorded as ever.

        Raises:
            WorkerError: it cannot be worked out.
        """
        self._tell(self._listener.screening)
        found = self._predictor.predict(screening)
        self._summary.extra_tokens += found.tokens
        self._tell(self._listener.screened, found.report)
        return found.report

    def _settle_all(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        """Record what became of a trial's task."""
        trial = self._flight.land(outcome.task.number)
        if outcome.worker_died:
            self._after_death(trial, outcome.worker, outcome.failure or "no reason given")
            return
        if not isinstance(outcome.result, TrialResult):
            self._fail(trial, outcome.failure or "no reason given", recipe_at_fault=outcome.recipe_at_fault)
            return
        judged = self._judge.of(trial.fingerprint, outcome.result)
        try:
            told = self._store.finish(
                trial.number, outcome.result, epoch=trial.epoch, gpu_seconds=trial.gpu_seconds, judged=judged
            )
        except EvaluationError as error:  # scores that are no scores
            self._fail(trial, str(error), recipe_at_fault=True)
            return
        if told is Told.LATE:
            self._lost(trial)
            return
        self._failures = self._fruitless = 0
        if outcome.result.stopped:
            self._summary.pruned += 1
            self._tell(self._listener.pruned, trial.number, trial.label, outcome.result)
            return
        self._summary.evaluated += 1
        value = outcome.result.value if judged.kept else -math.inf
        new_best, self._best = value > self._best, max(self._best, value)
        self._tell(self._listener.finished, trial.number, trial.label, outcome.result, new_best=new_best)

    def _after_death(self, trial: OpenTrial, worker: str, reason: str) -> None:
        """Try again with another worker, or fail with what was seen each time."""
        trial.deaths.append(reason)
        self._flight.forget(worker)
        times = len(trial.deaths)
        if times <= self._search.retries:
            self._flight.waiting.appendleft(trial)
            self._tell(self._listener.failed, trial.number, trial.label, reason, retried=True)
        else:
            evidence = "; ".join(dict.fromkeys(trial.deaths))
            self._fail(trial, f"{times} workers died while they evaluated it: {evidence}")

    def _fail(self, trial: OpenTrial, reason: str, *, recipe_at_fault: bool = False) -> None:
        if self._store.fail(trial.number, reason, epoch=trial.epoch, gpu_seconds=trial.gpu_seconds) is Told.LATE:
            self._lost(trial)
            return
        self._summary.failed += 1
        self._tell(self._listener.failed, trial.number, trial.label, reason, retried=False)
        if recipe_at_fault:
            self._fruitless += 1
            return
        self._failures += 1
        if self._failures >= MAX_FAILURES_IN_A_ROW:
            raise WorkerError(
                f"the last {self._failures} trials failed, the last one with: {reason}\n"
                "Mend the cause and run the same command again; what is recorded stays."
            )

    def _tell(self, event: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            event(*args, **kwargs)
        except Exception:
            logger.exception("what happened could not be shown; the study goes on")


def _extent(history: Sequence[FrozenTrial]) -> tuple[int, int]:
    """Trials begun, and of these running."""
    return len(history), sum(t.state == TrialState.RUNNING for t in history)
