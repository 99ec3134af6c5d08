"""`screen`: thousands of candidates scored on predicted embeddings, and a few of them picked for evaluation.

Notation: n evaluated merges, C candidates, D coordinates, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.luck import Luck
from mergesearch.evaluation.objectives import PENALTY
from mergesearch.evaluation.resampling import plain_weights
from mergesearch.surrogate.candidates import Space, as_points
from mergesearch.surrogate.kriging import Kriging, LengthFit, fit_lengths
from mergesearch.surrogate.objective import Objective, paired_error
from mergesearch.surrogate.report import Landscape, LeftOut, Pick, Point, ScreeningReport

Array = NDArray[np.float64]
PARENTS = 4
"""Points that local candidates are drawn around."""
SWEEP = 9
"""Positions per coordinate when asking which coordinates matter."""


class Bank(Protocol):
    """What n evaluated merges left (embeddings, logits of pairs), from which others' scores are predicted."""

    @property
    def keys(self) -> tuple[str, ...]:
        """What the merges are called."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Queries per collection."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each collection in the value."""

    def gram(self) -> Array:
        """Inner products of the merges' differences from their mean, float64 [n, n]."""

    def per_query_scores(self, weights: Array, metric: str) -> Array:
        """Scores of merges that are predicted with these weights, [C, n], of the evaluated ones, float64 [C, Q]."""


@dataclass(frozen=True)
class Screening:
    """Everything that decides what is picked, but for embeddings and measured scores. Small and picklable.

    Attributes:
        keys: what the n evaluated merges are called: the bank's keys.
        points: their coordinates, n of D.
        pending: points that others are evaluating; nothing is learnt from them but that they will be known.
        taken: further points that are not to be picked.
        references: keys of unmerged sources, which the objective measures gains against; they may lie outside of the
            space and so not be among `keys`.
        allowed: per coordinate the ascending positions that may be picked, None for every one; empty for no limits.
        metric: for example `ndcg@10`.
        objective: what is maximised.
        shares: of the collections in what is maximised; empty for their shares in the value.
        floors: collections by their place, and the mean score below which a merge is worth less by `PENALTY` times
            what it lacks.
        exploration: standard deviations of the prediction that are added to the objective; some is needed to spread
            the picks of one batch.
        n_candidates: candidates of the first round. A lattice of no more points is taken whole.
        n_picks: points to pick; each counts as known when the next one is.
        separation: least distance, in the coordinate that differs most, of picks from everything known, as long as
            there are such candidates.
        refine_rounds: further rounds of a quarter as many candidates around the best so far.
        kernel: a name in `kriging.KERNELS`.
        seed: decides all that is drawn.
    """

    keys: tuple[str, ...]
    points: tuple[Point, ...]
    pending: tuple[Point, ...] = ()
    taken: tuple[Point, ...] = ()
    references: tuple[str, ...] = ()
    allowed: tuple[tuple[float, ...] | None, ...] = ()
    metric: str = "ndcg@10"
    objective: Objective = field(default_factory=Objective)
    shares: tuple[float, ...] = ()
    floors: tuple[tuple[int, float], ...] = ()
    exploration: float = 0.5
    n_candidates: int = 2048
    n_picks: int = 1
    separation: float = 0.01
    refine_rounds: int = 2
    kernel: str = "gaussian"
    seed: int = 0


def screen(
    request: Screening, bank: Bank, measured: Array, outside: Mapping[str, Array] | None = None
) -> ScreeningReport:
    """Pick the points that are most worth evaluating. A function of its arguments alone.

    Args:
        request: see there.
        bank: what the evaluated merges left, `request.keys`.
        measured: their scores per query, float64 [n, Q], the queries of the bank's collections side by side.
        outside: the same, [Q], of references that are not among the evaluated merges.

    Raises:
        EvaluationError: the arguments do not belong together.
    """
    scores = {**dict(zip(request.keys, measured, strict=False)), **(outside or {})}
    _check(request, bank, measured, scores)
    references = np.array([scores[key] for key in request.references]).reshape(-1, measured.shape[1])
    return _Screen(request, bank, measured, references).report()


class _Screen:
    """One screening: what is worked out once, and the growing table of candidates."""

    def __init__(self, request: Screening, bank: Bank, measured: Array, references: Array) -> None:
        self.request, self.bank, self.measured_nQ = request, bank, measured
        self.sizes, self.shares = bank.sizes, bank.shares
        self.plain = plain_weights(self.sizes, self.shares)
        self.sought_shares = request.shares or self.shares
        self.sought = plain_weights(self.sizes, self.sought_shares)
        self.points = np.array(request.points, dtype=np.float64)
        self.n, self.dimensions = self.points.shape
        self.known = np.concatenate([self.points, as_points(request.pending, self.dimensions)])
        self.space = Space(request.allowed or (None,) * self.dimensions)
        self.random = np.random.default_rng(request.seed)
        self.references = references
        self.fit: LengthFit = fit_lengths(self.points, bank.gram(), request.kernel)
        self.kriging = Kriging(self.points, self.fit.lengths, request.kernel)
        self._calibrate()
        self.candidates = np.empty((0, self.dimensions))
        self.scores_CQ = np.empty((0, len(self.plain)))

    def _calibrate(self) -> None:
        """Scale of the prediction's uncertainty, from evaluated merges predicted by the others."""
        weights, variances = self.kriging.left_out
        self.left_out = self.bank.per_query_scores(weights, self.request.metric) @ self.plain
        self.left_out_unit = _uncertainty(variances)
        off = self.measured_nQ @ self.plain - self.left_out
        total = float((self.left_out_unit**2).sum())
        # Ratios of sums: points that crowd together are predicted almost surely, and must not decide the scale.
        self.unit_sd = float(np.sqrt(off @ off / total)) if self.n > 1 else 0.0

    def report(self) -> ScreeningReport:
        """Draw, score, pick, and say how far to trust it."""
        self._search()
        objectives, values_n = self._objectives(), self.measured_nQ @ self.plain
        all_scores = np.concatenate([self.measured_nQ, self.scores_CQ])
        replayed = self.bank.per_query_scores(np.eye(self.n), self.request.metric) @ self.plain
        improvement, noise = self._improvement(objectives[self.n :])
        return ScreeningReport(
            picks=self._picks(objectives[self.n :]),
            left_out=tuple(
                LeftOut(key, *map(float, row))
                for key, *row in zip(
                    self.request.keys,
                    values_n,
                    self.left_out,
                    self.unit_sd * self.left_out_unit,
                    np.sqrt(self.fit.errors),
                    strict=True,
                )
            ),
            lengths=_plain(self.fit.lengths),
            n_screened=len(self.candidates),
            best_measured=float(values_n.max()),
            improvement=improvement,
            noise=noise,
            optimism=Luck(all_scores, self.sizes, self.shares, seed=self.request.objective.seed).optimism(),
            replay_error=float(np.abs(replayed - values_n).mean()),
            landscape=self._landscape(np.concatenate([self.points, self.candidates])[objectives.argmax()]),
        )

    def _search(self) -> None:
        """Fill the table of candidates: everything, or points all over and then ever nearer to the best."""
        space, n = self.space, self.request.n_candidates
        everything = space.lattice(n)
        if everything is not None:
            self._add(everything)
            return
        near = self.points[np.argsort(-self._objectives()[: self.n], kind="stable")[:PARENTS]]
        spread = space.spread(n * 3 // 4, self.dimensions, self.random)
        self._add(np.concatenate([spread, space.around(near, n // 4, 0.2, self.random)]))
        for step in range(self.request.refine_rounds):
            best = np.argsort(-self._acquisition(), kind="stable")[:PARENTS]
            if len(best):
                self._add(space.around(self.candidates[best], n // 4, 0.1 / 2**step, self.random))

    def _improvement(self, objectives_C: Array) -> tuple[float, float]:
        """Predicted gain of the best open candidate over the best measured score, and its standard error."""
        if not len(objectives_C):
            return float("-inf"), 0.0
        values_n = self.measured_nQ @ self.sought - self._penalties(self.measured_nQ)
        values_C = self.scores_CQ @ self.sought - self._penalties(self.scores_CQ)
        open_, measured = int(objectives_C.argmax()), int(values_n.argmax())
        noise = paired_error(self.scores_CQ[open_], self.measured_nQ[measured], self.sizes, self.sought_shares)
        return float(values_C[open_] - values_n[measured]), noise

    def _add(self, candidates: Array) -> None:
        """Score those candidates that are new."""
        taken = np.concatenate([self.known, as_points(self.request.taken, self.dimensions), self.candidates])
        fresh = self.space.fresh(candidates, taken)
        self.candidates = np.concatenate([self.candidates, fresh])
        self.scores_CQ = np.concatenate([self.scores_CQ, self._predict(fresh)])

    def _predict(self, points: Array) -> Array:
        return self.bank.per_query_scores(self.kriging.weights(points), self.request.metric)

    def _sd(self, known: Array) -> Array:
        """Standard deviations of the candidates' dev scores, [C], once the points `known` are evaluated."""
        kriging = self.kriging if len(known) == self.n else Kriging(known, self.fit.lengths, self.request.kernel)
        sd: Array = _uncertainty(kriging.variance(self.candidates)) * self.unit_sd
        return sd

    def _means(self) -> Array:
        means: Array = self.scores_CQ @ self.plain
        return means

    def _objectives(self) -> Array:
        """Of the evaluated merges, measured, and of the candidates, predicted, [n + C]."""
        together = np.concatenate([self.measured_nQ, self.scores_CQ])
        values = self.request.objective.values(together, self.references, self.sizes, self.sought_shares)
        return values - self._penalties(together)

    def _penalties(self, scores: Array) -> Array:
        """What merges with these scores, [any, Q], are worth less for the collections that lie below their floor."""
        penalties = np.zeros(len(scores))
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        for place, floor in self.request.floors:
            means = scores[:, starts[place] : starts[place + 1]].mean(axis=1)
            penalties += PENALTY * np.maximum(0.0, floor - means)
        return penalties

    def _acquisition(self) -> Array:
        """Of the candidates, [C], while nothing is picked."""
        return self._objectives()[self.n :] + self.request.exploration * self._sd(self.known)

    def _picks(self, objectives_C: Array) -> tuple[Pick, ...]:
        picks: list[Pick] = []
        known, means_C = self.known, self._means()
        open_ = np.ones(len(means_C), dtype=bool)
        gaps_C = cdist(self.candidates, known, "chebyshev").min(axis=1)
        while len(picks) < self.request.n_picks and open_.any():
            sd_C = self._sd(known)
            acquisition_C = objectives_C + self.request.exploration * sd_C
            apart = open_ & (gaps_C >= self.request.separation)
            best = int(np.where(apart if apart.any() else open_, acquisition_C, -np.inf).argmax())
            point = self.candidates[best]
            told = (float(column[best]) for column in (means_C, sd_C, objectives_C, acquisition_C))
            picks.append(Pick(_plain(point), *told))
            open_[best] = False
            known = np.concatenate([known, point[None]])
            gaps_C = np.minimum(gaps_C, np.abs(self.candidates - point).max(axis=1))
        return tuple(picks)

    def _landscape(self, summit: Array) -> Landscape:
        sweeps = [self.space.positions(d, SWEEP) for d in range(self.dimensions)]
        lines = np.concatenate([_moved(summit, (d,), (sweep,)) for d, sweep in enumerate(sweeps)])
        ends = np.cumsum([len(sweep) for sweep in sweeps])[:-1]
        importance = [float(v.var()) for v in np.split(self._predict(lines) @ self.plain, ends)]
        coordinates = tuple(int(d) for d in np.argsort(-np.array(importance), kind="stable")[:2])
        positions = tuple(self.space.positions(d, 2 * SWEEP - 1) for d in coordinates)
        means = self._predict(_moved(summit, coordinates, positions)) @ self.plain
        return Landscape(coordinates, tuple(map(_plain, positions)), _plain(means), tuple(importance))


def _uncertainty(variance: Array) -> Array:
    """Standard deviation of a predicted score, up to a factor, from the kriging variance.

    Scores move where documents change places. How many do is in proportion to the error of the embeddings, √variance,
    and each moves scores up or down: a sum of so many independent steps has the root of their number as s.d.
    """
    uncertainty: Array = np.sqrt(np.sqrt(variance))
    return uncertainty


def _moved(point: Array, coordinates: Sequence[int], positions: Sequence[Array]) -> Array:
    """`point` with some coordinates set to every combination of positions, the last varying fastest."""
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*positions, indexing="ij")], axis=1)
    points = np.repeat(point[None], len(grid), axis=0)
    points[:, list(coordinates)] = grid
    return points


def _plain(values: Array) -> tuple[float, ...]:
    return tuple(map(float, values))


def _check(request: Screening, bank: Bank, measured: Array, scores: Mapping[str, Array]) -> None:
    n, dimensions = len(request.keys), {len(point) for point in (*request.points, *request.pending)}
    if request.keys != bank.keys or len(request.points) != n:
        raise EvaluationError(
            f"a screening of {n} merges at {len(request.points)} points needs what exactly those left, in their order; "
            f"the bank holds {len(bank.keys)}."
        )
    if len(dimensions) != 1 or len(request.allowed) not in {0, *dimensions}:
        raise EvaluationError("a screening's points, pending points and allowed positions differ in their coordinates.")
    if measured.shape != (n, sum(bank.sizes)):
        raise EvaluationError(f"measured scores must be {[n, sum(bank.sizes)]}, not {list(measured.shape)}.")
    if missing := sorted(set(request.references) - scores.keys()):
        raise EvaluationError(f"references were not evaluated: {', '.join(missing)}.")
