"""The one rule that decides what `best`, `export` and reports call the winner.

The highest dev score of many trials is partly luck, and the luckier the more trials there were. So among the
merges that are within one standard error of the highest score, by the paired per-query difference, the one
nearest to an unmerged source is chosen (the one-standard-error rule of Breiman et al., Classification and
Regression Trees, 1984, section 3.4.3, with distance to a source in the place of tree size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergesearch.errors import MergesearchError
from mergesearch.evaluation.result import CollectionScores
from mergesearch.results.distance import Distances
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study


class NothingScoredError(MergesearchError):
    """The study has no trial with a score yet."""

    exit_code = 3


@dataclass(frozen=True)
class Choice:
    """The chosen trial and the highest scoring one.

    Attributes:
        number, label, value: the chosen trial; `value` is its dev score.
        best_number, best_label, best_value: the highest dev score, as `optuna best-trial` prints it.
        standard_error: of the paired difference between the two; 0 when they are the same trial.
        nearest: the source that the chosen merge is nearest to; None for methods that give no source alone.
        distance: how far from it, see `Distances`; None with `nearest`.
    """

    number: int
    label: str
    value: float
    best_number: int
    best_label: str
    best_value: float
    standard_error: float
    nearest: str | None
    distance: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def describe(self) -> str:
        """One or two lines for people."""
        chosen = f"chosen: trial {self.number} ({self.label}), dev score {self.value:.4f} (a selection score)"
        if self.number == self.best_number:
            return f"{chosen}; it is also the highest"
        highest = f"highest: trial {self.best_number} ({self.best_label}), dev score {self.best_value:.4f}"
        if self.nearest is None:
            return f"{chosen}\n{highest}, which is the same"
        nearer = f"the merge nearer to {self.nearest} is preferred"
        if self.value == self.best_value:
            return f"{chosen}\n{highest}; of equal scores {nearer}"
        return (
            f"{chosen}\n{highest}; the difference is within one standard error ({self.standard_error:.4f}), so {nearer}"
        )


@dataclass(frozen=True)
class Candidate:
    """A scored trial as the rule sees it.

    Attributes:
        number, label, value: the trial; `value` is the weighted mean of `scores`.
        scores: per query, by collection.
        distance: to the nearest unmerged source; inf where that cannot be said.
        nearest: that source.
        fingerprint: of its recipe: what breaks ties, so that the order of trials decides nothing.
    """

    number: int
    label: str
    value: float
    scores: tuple[CollectionScores, ...]
    distance: float
    nearest: str | None
    fingerprint: str


@dataclass(frozen=True)
class ScoredTrial:
    """A trial with a value."""

    number: int
    label: str
    value: float
    fingerprint: str


def choose(study: Study, store: StudyStore) -> Choice:
    """Apply the rule to everything the study has scored.

    Raises:
        NothingScoredError: no trial has a score yet.
    """
    distances = Distances(study)
    candidates = []
    for trial in scored_trials(store):
        result = store.result(trial.number)
        if result is None:  # another program ended it, with a value but without scores
            continue
        distance, nearest = distances.nearest(store.recipe(trial.number))
        candidates.append(
            Candidate(trial.number, trial.label, trial.value, result.collections, distance, nearest, trial.fingerprint)
        )
    if not candidates:
        raise NothingScoredError(f"study {study.name!r} has no scored trial yet; `mergesearch run` it first")
    return pick(candidates)


def pick(candidates: Sequence[Candidate]) -> Choice:
    """The rule itself; trial numbers only decide which of several highest trials is shown beside the choice."""
    reference = min(candidates, key=lambda c: (-c.value, c.distance, c.fingerprint))
    errors = {c.number: paired_standard_error(reference.scores, c.scores) for c in candidates}
    close = [c for c in candidates if reference.value - c.value <= errors[c.number]]
    chosen = min(close, key=lambda c: (c.distance, -c.value, c.fingerprint))
    highest = min(candidates, key=lambda c: (-c.value, c.number))
    return Choice(
        number=chosen.number,
        label=chosen.label,
        value=chosen.value,
        best_number=highest.number,
        best_label=highest.label,
        best_value=highest.value,
        standard_error=0.0 if chosen.number == highest.number else errors[chosen.number],
        nearest=chosen.nearest,
        distance=chosen.distance if math.isfinite(chosen.distance) else None,
    )


def scored_trials(store: StudyStore) -> list[ScoredTrial]:
    """Every evaluated recipe once, under the first trial that scored it, in the order of trials."""
    found: dict[str, ScoredTrial] = {}
    for t in store.trials():
        fingerprint = t.user_attrs.get("recipe")  # missing in trials that other programs added to the study
        if t.state.name == "COMPLETE" and t.value is not None and fingerprint is not None:
            trial = ScoredTrial(t.number, str(t.user_attrs.get("label", "")), float(t.value), fingerprint)
            found.setdefault(fingerprint, trial)
    return list(found.values())


def paired_standard_error(a: Sequence[CollectionScores], b: Sequence[CollectionScores]) -> float:
    """Standard error of the difference between two trials' values, the weighted mean over collections.

    Queries are paired; collections are independent samples, so their squared standard errors add up, each times
    its squared share. A collection with one query has no spread to tell and adds nothing.

    Args:
        a: scores of one trial, float64 [Q] per collection.
        b: scores of another trial of the study: the same collections and queries in the same order.
    """
    total = math.fsum(c.weight for c in a)
    variances = []
    for mine, theirs in zip(a, b, strict=True):
        assert (mine.collection, mine.query_ids) == (theirs.collection, theirs.query_ids)
        difference: NDArray[np.float64] = mine.scores - theirs.scores
        if len(difference) > 1:
            variances.append((mine.weight / total) ** 2 * float(difference.var(ddof=1)) / len(difference))
    return math.sqrt(math.fsum(variances))
