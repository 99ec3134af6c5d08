"""The one rule that decides what `best`, `export` and reports call the winner.

The highest dev score of many trials is partly luck, and the luckier the more trials there were. So the highest merge
is the winner only where more is to be expected of it than of the best source alone: where its gain is more than the
luck in it (see `mergesearch.evaluation.luck`), less the little that is in the source's score, which was picked out of
few. Else that source is. Both are shown with the luck that is in them. Where no source alone was evaluated nothing can
be recommended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from mergesearch.errors import MergesearchError
from mergesearch.evaluation.luck import Luck
from mergesearch.evaluation.objectives import Objectives
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.results.distance import Distances
from mergesearch.results.front import FrontPoint, pareto_front
from mergesearch.search.ledger import violation
from mergesearch.storage.reader import StudyReader
from mergesearch.study import Study


class NothingScoredError(MergesearchError):
    """The study has no trial with a score yet."""

    exit_code = 3


@dataclass(frozen=True)
class Choice:
    """The chosen trial and the highest scoring one.

    Attributes:
        number, label, value: the chosen trial; `value` is its dev score.
        optimism: how much of `value` is luck on average, 0 or more.
        expected: `value` less `optimism`: what to expect on other queries of the kind.
        best_number, best_label, best_value: the highest dev score, as `optuna best-trial` prints it.
        best_optimism: how much of `best_value` is luck on average.
        source_number, source_label: the source alone that scored highest; None where none was evaluated.
        gain: `best_value` less that source's; None without one.
        gain_optimism: how much of `gain` is luck on average: what is in `best_value` less what is in the source's
            score, which was picked as well, out of few; None without a source.
        gain_interval: 95% paired bootstrap interval of `gain` less `gain_optimism`; None without a source.
        verdict: `merge` where the gain is more than luck; `source` where it is not, and the source is the choice;
            `unknown` where no source alone was evaluated, and the choice is the highest without recommendation.
        nearest: the source that the chosen merge is nearest to; None for methods that give no source alone.
        distance: how far from it, see `Distances`; None with `nearest`.
        front: where there are several objectives, the trials that no other beats in all of them, by the first
            objective, highest first. The choice is among them or is a source.
        set_aside: how many trials lost more on guarded collections than they may; none of them is named above.
        on_queries: what the scores are on, where that is not judged queries alone; see `evaluation.labels`.
    """

    number: int
    label: str
    value: float
    optimism: float
    expected: float
    best_number: int
    best_label: str
    best_value: float
    best_optimism: float
    source_number: int | None
    source_label: str | None
    gain: float | None
    gain_optimism: float | None
    gain_interval: tuple[float, float] | None
    verdict: str
    nearest: str | None
    distance: float | None
    front: tuple[FrontPoint, ...] = ()
    set_aside: int = 0
    on_queries: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def describe(self) -> str:
        """Two or three lines for people."""
        chosen = f"chosen: trial {self.number} ({self.label}), dev score {self._shown(self.value, self.optimism)}"
        if self.number == self.best_number:
            return f"{chosen}; it is also the highest\n{self.reason()}"
        best = self._shown(self.best_value, self.best_optimism)
        highest = f"highest: trial {self.best_number} ({self.best_label}), dev score {best}"
        if self.best_value == self.value and self.nearest is not None:
            highest += f"; of equal scores the merge nearer to {self.nearest} is preferred"
        return f"{chosen}\n{highest}\n{self.reason()}"

    def _shown(self, value: float, optimism: float) -> str:
        return luck_in(value, optimism, self.on_queries)

    def reason(self) -> str:
        """The verdict in words."""
        if not self.set_aside:
            return self._verdict()
        trials = "1 trial lost" if self.set_aside == 1 else f"{self.set_aside} trials lost"
        return f"{self._verdict()}\nset aside: {trials} more on a guarded collection than `may_lose`"

    def _verdict(self) -> str:
        if self.gain is None or self.gain_optimism is None or self.gain_interval is None:
            return (
                "no source alone was evaluated, so nothing says that merging gained anything and nothing is "
                "recommended; `search: {enqueue: [sources]}` evaluates them"
            )
        over = f"trial {self.source_number} ({self.source_label})"
        if self.gain <= 0:
            return f"no merge scores more than {over}, so the source is recommended"
        gains = f"gains {self.gain:.4f} over {over}, the best source, of which about {self.gain_optimism:.4f} is luck"
        if self.verdict == "source":
            return f"the highest {gains}: no gain is to be expected, so the source is recommended"
        low, high = self.gain_interval
        doubt = "" if low > 0 else ", so it may be no gain at all"
        return f"the merge {gains}; 95% interval of the rest [{low:+.4f}, {high:+.4f}]{doubt}"


def luck_in(value: float, optimism: float | None, on_queries: str = "") -> str:
    """A dev score with what is known of it, and of the queries that it is on."""
    amount = "" if optimism is None else "less than 0.0001" if optimism < 0.00005 else f"about {optimism:.4f}"
    luck = amount and f"; {amount} of it is luck"
    return f"{value:.4f} (a selection score{on_queries}{luck})"


@dataclass(frozen=True)
class Candidate:
    """A scored trial as the rule sees it.

    Attributes:
        number, label, value: the trial; `value` is the weighted mean of `scores`.
        scores: per query, by collection.
        distance: to the nearest unmerged source; inf where that cannot be said.
        nearest: that source.
        fingerprint: of its recipe: what breaks ties, so that the order of trials decides nothing.
        optimism: what its strategy says of it, having picked it out of more candidates than were evaluated.
    """

    number: int
    label: str
    value: float
    scores: tuple[CollectionScores, ...]
    distance: float
    nearest: str | None
    fingerprint: str
    optimism: float = 0.0


@dataclass(frozen=True)
class ScoredTrial:
    """A trial with a value; `optimism` as in `Candidate`."""

    number: int
    label: str
    value: float
    fingerprint: str
    optimism: float


def choose(
    study: Study, store: StudyReader, scored: Mapping[int, tuple[MergeRecipe, TrialResult]] | None = None
) -> Choice:
    """Apply the rule to everything the study has scored on all its queries.

    Args:
        study: the resolved study.
        store: its records.
        scored: what `store.scored` gave, where that is known, or a part of it: of the trials, or of the queries.

    Raises:
        NothingScoredError: no trial has a score yet.
    """
    distances, scored = Distances(study), store.scored() if scored is None else scored
    candidates = []
    for trial in scored_trials(store):
        if trial.number not in scored:  # another program ended it, with a value but without scores
            continue
        recipe, result = scored[trial.number]
        distance, nearest = distances.nearest(recipe)
        candidates.append(
            Candidate(
                trial.number,
                trial.label,
                result.value,
                result.collections,
                distance,
                nearest,
                trial.fingerprint,
                trial.optimism,
            )
        )
    if not candidates:
        raise NothingScoredError(f"study {study.name!r} has no scored trial yet; `mergesearch run` it first")
    measure = study.measure
    kept = candidates if measure is None else within_guards(candidates, study.objectives, measure.fingerprint)
    front: tuple[FrontPoint, ...] = ()
    if study.objectives.several:
        front = pareto_front([FrontPoint(c.number, c.label, study.objectives.values(c.scores)) for c in kept])
    set_aside = len(candidates) - len(kept)
    return replace(pick(kept), front=front, set_aside=set_aside, on_queries=store.record.on_queries)


def within_guards(candidates: Sequence[Candidate], objectives: Objectives, measure: str) -> list[Candidate]:
    """Those that lost no more on guarded collections, against the template alone, than they may.

    Raises:
        NothingScoredError: the template alone, the recipe with the fingerprint `measure`, has no score.
    """
    template = next((c for c in candidates if c.fingerprint == measure), None)
    if template is None:
        raise NothingScoredError(f"the template, {objectives.template!r}, alone has no score that `may_lose` needs")
    excess = [objectives.excess(c.scores, template.scores).values() for c in candidates]
    return [c for c, lost in zip(candidates, excess, strict=True) if all(one <= 0 for one in lost)]


def pick(candidates: Sequence[Candidate]) -> Choice:
    """The rule itself; trial numbers only decide which of several highest trials is shown beside the choice."""
    ranked = sorted(candidates, key=lambda c: (-c.value, c.distance, c.fingerprint))
    shown = min(candidates, key=lambda c: (-c.value, c.number))
    luck = luck_of([c.scores for c in ranked])
    best_optimism = max(luck.optimism(), ranked[0].optimism)
    verdict, chosen, optimism = "unknown", ranked[0], best_optimism
    source, gain, in_gain, interval = None, None, None, None
    alone = np.array([i for i, c in enumerate(ranked) if c.distance == 0], dtype=np.intp)
    if len(alone):
        source = ranked[alone[0]]
        gain = ranked[0].value - source.value
        of_source = luck.optimism(lambda values: alone[values[:, alone].argmax(axis=1)])
        in_gain = 0.0 if source is ranked[0] else max(0.0, best_optimism - of_source)
        low, high = luck.interval(0, int(alone[0]))
        interval = (low - in_gain, high - in_gain)
        verdict = "merge" if gain > in_gain else "source"
        if verdict == "source":
            chosen, optimism = source, of_source
    return Choice(
        number=chosen.number,
        label=chosen.label,
        value=chosen.value,
        optimism=optimism,
        expected=chosen.value - optimism,
        best_number=shown.number,
        best_label=shown.label,
        best_value=shown.value,
        best_optimism=best_optimism,
        source_number=None if source is None else source.number,
        source_label=None if source is None else source.label,
        gain=gain,
        gain_optimism=in_gain,
        gain_interval=interval,
        verdict=verdict,
        nearest=chosen.nearest,
        distance=chosen.distance if math.isfinite(chosen.distance) else None,
    )


def best_optimism(store: StudyReader) -> float | None:
    """`Choice.best_optimism` without the study's files; None where no trial that guards keep has scores per query."""
    results = store.scored()
    set_aside = {t.number for t in store.trials() if violation(t)}
    scored = [t for t in scored_trials(store) if t.number in results and t.number not in set_aside]
    if not scored:
        return None
    scored.sort(key=lambda t: (-t.value, t.fingerprint))
    return max(luck_of([results[t.number][1].collections for t in scored]).optimism(), scored[0].optimism)


def luck_of(trials: Sequence[Sequence[CollectionScores]]) -> Luck:
    """Luck among trials of one study: the same collections and queries in the same order."""
    first = trials[0]
    assert all([(c.collection, c.query_ids) for c in t] == [(c.collection, c.query_ids) for c in first] for t in trials)
    scores_TQ = np.stack([np.concatenate([c.scores for c in t]) for t in trials])
    return Luck(scores_TQ, [len(c.scores) for c in first], [c.weight for c in first])


def scored_trials(store: StudyReader) -> list[ScoredTrial]:
    """Every evaluated recipe once, under the first trial that scored it, in the order of trials.

    Trials that were given up before their last query (PRUNED) are not among them.
    """
    found: dict[str, ScoredTrial] = {}
    for t in store.trials():
        fingerprint = t.user_attrs.get("recipe")  # missing in trials that other programs added to the study
        if t.state.name == "COMPLETE" and t.value is not None and fingerprint is not None:
            label, optimism = str(t.user_attrs.get("label", "")), _screened(t.user_attrs)
            found.setdefault(fingerprint, ScoredTrial(t.number, label, float(t.value), fingerprint, optimism))
    return list(found.values())


def _screened(attributes: Mapping[str, Any]) -> float:
    """The optimism that a strategy noted with its trial, 0 where it noted none."""
    noted = attributes.get("optimism")
    return float(noted) if isinstance(noted, int | float) and math.isfinite(noted) else 0.0
