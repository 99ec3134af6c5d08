"""A study as people look at it: what figures, notes, reports and comparisons are made from.

Read once from the database; nothing is encoded, and no weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import accumulate
from typing import Any

from mergesearch.evaluation.result import ESTIMATE_ATTR, GPU_SECONDS_ATTR, IMPORTED_ATTR, TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.results.choose import Choice, NothingScoredError, choose
from mergesearch.results.distance import Distances
from mergesearch.search.importance import importances
from mergesearch.search.ledger import violation
from mergesearch.search.strategy import proposal_attrs
from mergesearch.storage.reader import Reading, StudyReader
from mergesearch.storage.record import StudyRecord
from mergesearch.study import Study


@dataclass(frozen=True)
class TrialView:
    """One trial.

    Attributes:
        number: Optuna's.
        state: `complete`, `pruned`, `fail` or `running`.
        label: its coefficients or its anchor's name, for people.
        params: Optuna's parameters by name; empty for anchors that are no point of the space.
        value: the dev score, a selection score; None without one, and for trials that were stopped.
        estimate: of a trial that was stopped, what its value would have been, about.
        predicted, deviation: what was predicted of it before it was evaluated; None where nothing was.
        fingerprint: of its recipe; empty for trials that other programs began.
        recipe, result: what was merged and what came back; None for trials that brought nothing.
        reused: its score is that of an earlier trial with an equal recipe: nothing was encoded for it.
        tokens: encoded for it.
        seconds: wall seconds per phase.
        gpu_seconds: what workers were held for it, see `GPU_SECONDS_ATTR`.
        started, ended: by the coordinator's clock.
        failure: why it has no score.
        anchor: it was enqueued (a source alone, the uniform average, a given point), and no strategy proposed it.
        strategy: which one proposed it; empty for anchors.
        imported: which trial of which other study it was that was evaluated; empty for those of this study.
        kept: it lost no more on guarded collections than it may.
    """

    number: int
    state: str
    label: str
    params: Mapping[str, float | int | str]
    value: float | None
    estimate: float | None
    predicted: float | None
    deviation: float | None
    fingerprint: str
    recipe: MergeRecipe | None
    result: TrialResult | None
    reused: bool
    tokens: int
    seconds: Mapping[str, float]
    gpu_seconds: float
    started: datetime | None
    ended: datetime | None
    failure: str | None
    anchor: bool = False
    strategy: str = ""
    imported: str = ""
    kept: bool = True


@dataclass(frozen=True)
class StudyView:
    """A whole study.

    Attributes:
        study: the resolved study.
        record: what the database keeps of it.
        trials: in number order.
        choice: what `choose` says; None while no trial has a score.
        readings: of test splits, oldest first.
        history: what happened to the study, oldest first: (when, event, detail).
    """

    study: Study
    record: StudyRecord
    trials: tuple[TrialView, ...]
    choice: Choice | None
    readings: tuple[Reading, ...]
    history: tuple[tuple[datetime, str, Mapping[str, Any]], ...]

    @property
    def metric(self) -> str:
        """For example `ndcg@10`, or `ndcg@10 on pseudo-queries`."""
        return self.study.metric

    @cached_property
    def scored(self) -> tuple[TrialView, ...]:
        """Trials with a value and scores per query, each recipe once, in number order."""
        once: dict[str, TrialView] = {}
        for t in self.trials:
            if t.value is not None and t.recipe is not None and t.result is not None:
                once.setdefault(t.fingerprint, t)
        return tuple(once.values())

    @cached_property
    def ranked(self) -> tuple[TrialView, ...]:
        """Of these the ones that guards keep, the highest first."""
        return tuple(sorted((t for t in self.scored if t.kept), key=lambda t: (-(t.value or 0.0), t.number)))

    @cached_property
    def chosen(self) -> TrialView | None:
        """What `choose` names."""
        return None if self.choice is None else self._numbered(self.choice.number)

    @cached_property
    def highest(self) -> TrialView | None:
        """The highest dev score that guards keep."""
        return None if self.choice is None else self._numbered(self.choice.best_number)

    @cached_property
    def sources(self) -> Mapping[str, TrialView]:
        """The scored trials of sources alone, by source.

        As the study's space gives them; and the best source alone that `choose` found among the merges, where other
        coefficients than those give it, too.
        """
        study, choice = self.study, self.choice
        found = self._of({s: study.recipe_of(c) for s, c in study.sources_alone().items()})
        if choice is not None and choice.source_number is not None:
            best = self._numbered(choice.source_number)
            name = None if best.recipe is None else Distances(study).nearest(best.recipe)[1]
            if name is not None:
                found.setdefault(name, best)
        return found

    @cached_property
    def uniform(self) -> TrialView | None:
        """The scored trial of the uniform average."""
        even = self.study.uniform_average()
        return None if even is None else self._of({"": self.study.recipe_of(even)}).get("")

    @cached_property
    def points(self) -> tuple[tuple[TrialView, Mapping[str, float], float], ...]:
        """Trials that are points of the study's space, in number order, with the point and the score.

        Of a trial that was stopped, the estimate of it.
        """
        space, found = self.study.space, []
        for t in self.trials:
            value = t.value if t.value is not None else t.estimate
            if value is not None and space.find(t.params) is not None:
                found.append((t, space.snap(t.params), value))
        return tuple(found)

    @cached_property
    def importances(self) -> Mapping[str, float]:
        """Share of each searched coefficient in the variance of scores, see `search.importance`."""
        return importances(self.study.space, [p for _, p, _ in self.points], [v for *_, v in self.points])

    def best_so_far(self) -> list[tuple[TrialView, float]]:
        """Trials with a value that guards keep, as they ended, each with the highest value until then."""
        found, best = [], float("-inf")
        for t in _as_ended(self.trials):
            if t.value is not None and t.kept:
                best = max(best, t.value)
                found.append((t, best))
        return found

    @cached_property
    def tokens_by_then(self) -> Mapping[int, int]:
        """By number, the tokens that all trials took which had ended when this one did, whatever became of them."""
        ended = _as_ended(self.trials)
        return dict(zip((t.number for t in ended), accumulate(t.tokens for t in ended), strict=True))

    def _numbered(self, number: int) -> TrialView:
        return next(t for t in self.trials if t.number == number)

    def _of(self, recipes: Mapping[str, MergeRecipe]) -> dict[str, TrialView]:
        scored = {t.fingerprint: t for t in self.scored}
        return {name: scored[r.fingerprint] for name, r in recipes.items() if r.fingerprint in scored}


def _as_ended(trials: Iterable[TrialView]) -> list[TrialView]:
    return sorted((t for t in trials if t.ended is not None), key=lambda t: (t.ended, t.number))


def read_view(study: Study, store: StudyReader) -> StudyView:
    """Read a study whole.

    Args:
        study: the resolved study.
        store: its records.
    """
    scored = store.scored()
    trials = []
    for t in store.trials():
        attrs = t.user_attrs
        state = t.state.name.lower()
        recipe, result = scored.get(t.number, (None, None))
        seconds = {k.removeprefix("seconds_"): float(v) for k, v in attrs.items() if k.startswith("seconds_")}
        trials.append(
            TrialView(
                number=t.number,
                state=state,
                label=str(attrs.get("label", "")),
                params=dict(t.params),
                value=t.value if state == "complete" else None,
                estimate=attrs.get(ESTIMATE_ATTR),
                predicted=attrs.get("predicted"),
                deviation=attrs.get("deviation"),
                fingerprint=str(attrs.get("recipe", "")),
                recipe=recipe,
                result=result,
                reused="duplicate_of" in attrs,
                tokens=attrs.get("tokens") or 0,
                seconds=seconds,
                gpu_seconds=attrs.get(GPU_SECONDS_ATTR, 0.0),
                started=t.datetime_start,
                ended=t.datetime_complete,
                failure=attrs.get("failure"),
                anchor="anchor" in attrs,
                strategy=str(proposal_attrs(t).get("strategy", "")),
                imported=str(attrs.get(IMPORTED_ATTR, "")),
                kept=not violation(t),
            )
        )
    try:
        choice = choose(study, store, scored)
    except NothingScoredError:
        choice = None
    return StudyView(study, store.record, tuple(trials), choice, tuple(store.test_readings()), tuple(store.history()))
