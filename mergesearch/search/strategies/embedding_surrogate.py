"""Search on predicted embeddings.

The embeddings of a merge vary smoothly with its coefficients, so those at unevaluated coefficients are predicted by
kriging from the merges evaluated so far, and the true metric is computed on the predictions: thousands of merges
for the price of matrix products. The merge with the best prospects is evaluated, which sharpens the prediction, and
so on until no prediction promises more than the noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from scipy.stats import qmc

from mergesearch.errors import Problem, StudyFileError
from mergesearch.evaluation.result import QUERIES_ATTR
from mergesearch.search.dimension import Dimension
from mergesearch.search.ledger import IN_FLIGHT, Ledger
from mergesearch.search.points import Params, Point, SearchSpace
from mergesearch.search.seeds import derive_seed
from mergesearch.search.strategy import SOURCE_ATTR, Proposal, Strategy, StrategyOptions, proposal_attrs
from mergesearch.surrogate.objective import Objective
from mergesearch.surrogate.report import Pick, ScreeningReport
from mergesearch.surrogate.screening import Screening

MOST_EVALUATED = 64
"""Merges that a prediction is made from."""
MOST_OF_OTHERS = 16
"""Of them, merges that another strategy proposed."""
MOST_REPLACEMENTS = 64
"""Further first points while every trial so far came to nothing."""
LEAST_GAIN = 0.1
"""Gains below this share of their standard error over the dev queries are not worth a trial."""
MOST_CORNERS = 2
"""Coordinates up to which the first merges are all corners and the centre."""
PREFIXES = 5
"""Lower parts of the model that are held for later merges: as many as the sources, the average and a pick have."""


class EmbeddingSurrogateOptions(StrategyOptions):
    """Options of `embedding_surrogate`."""

    initial: Literal["auto", "corners", "one_hot", "sobol"] = "auto"
    """What is evaluated before anything is predicted: all corners of the space and its centre; the template and, from
    there, each coefficient alone at its other end; or a Sobol sequence. `auto`: corners for one or two coefficients,
    else one-hot."""
    objective: Literal["lower_bound", "mean", "cross_fit"] = "lower_bound"
    """What is maximised: a bootstrap lower bound of the gain over the best source alone; the plain mean of the metric,
    which trusts a small dev split most; or a cross-fitted mean, proposed on one half of the queries and judged on the
    other."""
    exploration: float = Field(0.5, ge=0)
    """How many standard deviations of the prediction a merge is credited with."""
    candidates: int = Field(2048, ge=64)
    """Merges predicted at a time."""
    kernel: Literal["gaussian", "matern52"] = "gaussian"
    """Correlation of what a linear trend leaves over."""
    batch: int | None = Field(None, ge=1)
    """Merges picked from one prediction; by default one for every worker."""
    patience: int = Field(2, ge=1)
    """The search ends when so many predictions in a row promise no more than the noise."""
    retries: int = Field(1, ge=0)
    """How often a merge of the first ones is tried again after its trial failed."""


class EmbeddingSurrogate(Strategy):
    """Predicts the embeddings of merges from those of evaluated ones, and evaluates what has the best prospects."""

    name = "embedding_surrogate"
    title = "search on interpolated embeddings"
    paper = "https://doi.org/10.1002/9781119115151"
    exhausted_because = "no further merge promises a gain beyond the prediction's own error"
    needs_embeddings = True
    ends_early = True
    Options = EmbeddingSurrogateOptions
    options: EmbeddingSurrogateOptions

    def __init__(self, space: SearchSpace, options: StrategyOptions, seed: int) -> None:
        super().__init__(space, options, seed)
        problems = [
            Problem(
                "is a choice without an order, and nothing can be interpolated between its values: run one study per "
                "value, or take another strategy (grid, tpe)",
                d.name,
            )
            for d in space.free
            if d.names
        ]
        if problems:
            raise StudyFileError(problems)
        self._design = self._first_points()
        self._asked: tuple[Screening, ScreeningReport] | None = None

    @property
    def repeated_prefixes(self) -> int:
        """The first points share theirs, and so do many picks where there are few values to pick from."""
        return PREFIXES

    def propose(self, history: Sequence[FrozenTrial], number: int) -> Proposal | None:  # noqa: ARG002
        """A first point that nobody evaluates, or the pick of a prediction."""
        ledger = Ledger(self.space, history)
        first = self._first_open(history, ledger)
        if first is not None:
            index, params = first
            attrs = {"strategy": self.name, "first": index}
            failures = ledger.at(self.space.point(params)).failures
            return Proposal(dict(params), attrs, f"{self.name}:first:{index}:{failures}")
        if self._first_in_flight(ledger) or self._all_closed(ledger) or not self._evaluated(history):
            return None
        for place, pick in enumerate(self._report(history).picks):
            params = self._params(pick.point)
            if not ledger.at(self.space.point(params)).closed(self.options.retries):
                return self._proposal(params, pick, place, history)
        return None

    def exhausted(self, history: Sequence[FrozenTrial]) -> bool:
        """Whether predictions promise no more than the noise, or every point is known."""
        ledger = Ledger(self.space, history)
        if ledger.in_flight or self._first_open(history, ledger) is not None:
            return False
        return self._all_closed(ledger) or not self._evaluated(history) or self._gave_up(history)

    def _first_open(self, history: Sequence[FrozenTrial], ledger: Ledger) -> tuple[int, Params] | None:
        """A first point that is still to be evaluated, and its place; others take over when all came to nothing."""
        points = self._design
        if not self._evaluated(history) and not self._first_in_flight(ledger):
            points = [*points, *self._spread(MOST_REPLACEMENTS)]
        places = enumerate(points)
        return next((p for p in places if not ledger.at(self.space.point(p[1])).closed(self.options.retries)), None)

    def _all_closed(self, ledger: Ledger) -> bool:
        return self.space.size() == len(ledger.closed(self.options.retries))

    def _gave_up(self, history: Sequence[FrozenTrial]) -> bool:
        """Whether the newest predictions in a row, the one for this history among them, promise nothing."""
        report = self._report(history)
        if self._promises(report):
            return False
        fruitless = {self._after(history)}
        for trial in reversed(history):
            attrs = proposal_attrs(trial)
            if attrs.get("strategy") != self.name or attrs.get("promising", True):
                break
            fruitless.add(str(attrs.get("after")))
        fronts = len(self.objectives.names) if self.objectives else 1  # each prediction seeks another part of a front
        return len(fruitless) >= self.options.patience * fronts or not report.picks

    def _promises(self, report: ScreeningReport) -> bool:
        """Whether a gain is predicted that the prediction's own error and the dev queries could tell from nothing."""
        if not report.picks:
            return False
        return report.improvement > max(report.picks[0].sd, LEAST_GAIN * report.noise)

    def _proposal(self, params: Params, pick: Pick, place: int, history: Sequence[FrozenTrial]) -> Proposal:
        report = self._report(history)
        after = self._after(history)
        shown = {
            "predicted": round(pick.mean, 6),
            "deviation": round(pick.sd, 6),
            "optimism": round(report.optimism, 6),
        }
        attrs = {"strategy": self.name, "after": after, "pick": place, "promising": self._promises(report)}
        return Proposal(params, attrs, f"{self.name}:{after}:{place}", shown)

    def _report(self, history: Sequence[FrozenTrial]) -> ScreeningReport:
        """What a worker predicts after this history; asked once."""
        screening = self._screening(history)
        if self._asked is None or self._asked[0] != screening:
            assert self.screener is not None, "the strategy predicts on a worker, and was given none"
            self._asked = screening, self.screener(screening)
        return self._asked[1]

    def _screening(self, history: Sequence[FrozenTrial]) -> Screening:
        evaluated, after = self._evaluated(history), self._after(history)
        known = {self.space.find(t.params) for t in evaluated}
        # Picks of this very screening are in flight when a fresh process repeats it.
        ledger = Ledger(
            self.space, [t for t in history if t.state not in IN_FLIGHT or proposal_attrs(t).get("after") != after]
        )
        closed = sorted(ledger.closed(self.options.retries) - known)
        flying = {point for point in closed if ledger.at(point).in_flight}
        options = self.options
        return Screening(
            keys=tuple(str(t.number) for t in evaluated),
            points=tuple(self._position(t.params) for t in evaluated),
            pending=tuple(self._position(self._by_name(point)) for point in closed if point in flying),
            taken=tuple(self._position(self._by_name(point)) for point in closed if point not in flying),
            references=tuple(str(t.number) for t in history if SOURCE_ATTR in t.user_attrs and _scored(t)),
            allowed=tuple(self._allowed(d) for d in self.space.free),
            metric=self.metric,
            objective=Objective(options.objective, seed=derive_seed(self.seed, self.name)),
            shares=self._shares(after),
            floors=self._floors(history),
            exploration=options.exploration,
            n_candidates=options.candidates,
            kernel=options.kernel,
            n_picks=options.batch or self.workers,
            seed=derive_seed(self.seed, self.name, after),
        )

    def _shares(self, after: str) -> tuple[float, ...]:
        """Of the collections in what is sought next: shares drawn at random for every objective of several.

        So one prediction after the other asks for another part of the Pareto front, of its convex hull (scalarised
        as in ParEGO, https://doi.org/10.1109/TEVC.2005.851274, but by weighted sums, since the front bends outward
        where a merge of two models is better than their mixture).
        """
        if self.objectives is None or not self.objectives.several:
            return ()
        random = np.random.default_rng(derive_seed(self.seed, self.name, after, "shares"))
        return self.objectives.shares(random.dirichlet(np.ones(len(self.objectives.names))).tolist())

    def _floors(self, history: Sequence[FrozenTrial]) -> tuple[tuple[int, float], ...]:
        """What guarded collections may not fall below, by their place."""
        guards = {} if self.objectives is None else self.objectives.allowances
        if self.objectives is None or not guards:
            return ()
        template = next(
            (t for t in history if t.user_attrs.get(SOURCE_ATTR) == self.objectives.template and _scored(t)), None
        )
        means = {} if template is None else template.user_attrs.get("scores", {})
        found = []
        for place, name in enumerate(self.objectives.members):
            had = means.get(f"{self.metric} {name}")
            if name in guards and had is not None:
                found.append((place, float(had) - guards[name]))
        return tuple(found)

    def _evaluated(self, history: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Whole trials of the space, one per point, in number order: the best of them where they are too many.

        Of trials that another strategy proposed fewer are taken: their embeddings are to be encoded again.
        """
        once: dict[Point, FrozenTrial] = {}
        for trial in history:
            point = self.space.find(trial.params)
            if point is not None and _scored(trial):
                once.setdefault(point, trial)
        others = [t for t in once.values() if proposal_attrs(t).get("strategy", self.name) != self.name]
        own = [t for t in once.values() if t not in others]
        return sorted(_best(own, MOST_EVALUATED) + _best(others, MOST_OF_OTHERS), key=lambda t: t.number)

    def _after(self, history: Sequence[FrozenTrial]) -> str:
        """A name for what is known: the trials of the space that have ended."""
        ended = [t.number for t in history if t.state.is_finished() and self.space.find(t.params) is not None]
        numbers = ",".join(map(str, ended))
        return hashlib.sha256(numbers.encode()).hexdigest()[:12]

    def _first_in_flight(self, ledger: Ledger) -> bool:
        return any(ledger.at(self.space.point(params)).in_flight for params in self._design)

    def _by_name(self, point: Point) -> Params:
        return {d.name: value for d, value in zip(self.space.dimensions, point, strict=True)}

    def _position(self, params: Mapping[str, float]) -> tuple[float, ...]:
        return tuple(_position(d, params[d.name]) for d in self.space.free)

    def _params(self, position: Sequence[float]) -> Params:
        low = {d.name: d.low for d in self.space.dimensions}
        return self.space.snap(low | {d.name: value_at(d, u) for d, u in zip(self.space.free, position, strict=True)})

    def _allowed(self, dimension: Dimension) -> tuple[float, ...] | None:
        choices = dimension.choices()
        return None if choices is None else tuple(_position(dimension, value) for value in choices)

    def _first_points(self) -> list[Params]:
        """The points evaluated before anything is predicted, the template's first."""
        n = len(self.space.free)
        kind = self.options.initial
        if kind == "auto":
            kind = "corners" if n <= MOST_CORNERS else "one_hot"
        home = np.zeros(n)
        if self.space.template is not None:
            home = np.array(self._position(self.space.template))
        positions = [home]
        if kind == "corners":
            positions += [np.array(corner, dtype=float) for corner in product((0.0, 1.0), repeat=n)]
            positions += [np.full(n, 0.5)] if n else []
        elif kind == "one_hot":
            for k in reversed(range(n)):  # the upper groups first, while the layers below them are still at hand
                away = home.copy()
                away[k] = 0.0 if home[k] > 0.5 else 1.0
                positions.append(away)
        else:
            return self._spread(n + 2)
        once = {self.space.point(params): params for params in map(self._params, [p.tolist() for p in positions])}
        return list(once.values())

    def _spread(self, n: int) -> list[Params]:
        """Points of a scrambled Sobol sequence, the template's first."""
        dimensions = max(1, len(self.space.free))
        sequence = qmc.Sobol(dimensions, rng=derive_seed(self.seed, self.name, "sobol"))
        drawn = sequence.random_base2(max(1, n - 1).bit_length())[:n, : len(self.space.free)]
        points = [self._params(position.tolist()) for position in drawn]
        return points if self.space.template is None else [self.space.snap(self.space.template), *points]


def _scored(trial: FrozenTrial) -> bool:
    """Whether its scores per query are known: what another program added or ended has none."""
    return trial.state == TrialState.COMPLETE and trial.value is not None and QUERIES_ATTR in trial.user_attrs


def _best(trials: list[FrozenTrial], most: int) -> list[FrozenTrial]:
    """The sources alone and the highest of the others."""
    return sorted(trials, key=lambda t: (SOURCE_ATTR not in t.user_attrs, -(t.value or 0.0), t.number))[:most]


def _position(dimension: Dimension, value: float) -> float:
    """`value` in [0, 1] by its size, not by its rank: how embeddings change is a matter of size."""
    if dimension.log:
        return dimension.to_unit(value)
    return (value - dimension.low) / (dimension.high - dimension.low)


def value_at(dimension: Dimension, position: float) -> float:
    """The permitted value at a coordinate of the unit cube: the inverse of how trials' values become coordinates."""
    if dimension.log:
        return dimension.from_unit(position)
    return dimension.snap(dimension.low + min(max(position, 0.0), 1.0) * (dimension.high - dimension.low))
