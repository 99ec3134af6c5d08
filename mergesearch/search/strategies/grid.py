"""Grid: every point of a finite space, exactly once."""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from pydantic import Field

from mergesearch.errors import Problem, StudyFileError
from mergesearch.search.ledger import IN_FLIGHT, Ledger
from mergesearch.search.seeds import derive_seed
from mergesearch.search.strategy import Proposal, Strategy, StrategyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from mergesearch.search.dimension import Dimension
    from mergesearch.search.points import Params, Point, SearchSpace

_Entry: TypeAlias = "tuple[int, Params, Point]"

MOST_POINTS = 100_000
"""More than anybody evaluates; the limit keeps a mistyped step from filling the memory."""


class GridOptions(StrategyOptions):
    """Options of `grid`."""

    points: int | None = Field(None, ge=2)
    """Values per continuous dimension, evenly spaced on its scale. None: the space lists values or steps."""
    order: Literal["prefix", "shuffled"] = "prefix"
    """`prefix` changes the lowest parameter groups least often, so that the layers below are not run again; workers
    take different values of the lowest. `shuffled` covers the space evenly from the
    start, for budgets that end before the grid does."""
    unmerged: bool = True
    """Whether points that are a source alone belong to the grid. Without them, and with `enqueue: []`, the best of the
    merges is chosen, whatever the sources score."""
    retries: int = Field(1, ge=0)
    """How often a point whose trial failed is proposed again."""


class Grid(Strategy):
    """Every point once; one that failed is tried again, one that was scored by anybody never is."""

    name = "grid"
    title = "every combination of values"
    finite = True
    Options = GridOptions
    options: GridOptions

    def __init__(self, space: SearchSpace, options: GridOptions, seed: int) -> None:
        super().__init__(space, options, seed)
        self._choices = [self._values(d) for d in space.dimensions]
        empty = [d.name for d, c in zip(space.dimensions, self._choices, strict=True) if not c]
        problems = [
            Problem("a grid needs values here: give `values` or `step`, or `points` of the grid", name)
            for name in empty
        ]
        if self._size > MOST_POINTS:
            problems.append(Problem(f"a grid of {self._size:,} points; at most {MOST_POINTS:,} make sense"))
        if problems:
            raise StudyFileError(problems)

    def propose(self, history: Sequence[FrozenTrial], number: int) -> Proposal | None:
        """The next point that nobody scored, runs, or failed at too often."""
        return self.propose_near(history, number, None)

    def propose_near(self, history: Sequence[FrozenTrial], number: int, near: Params | None) -> Proposal | None:  # noqa: ARG002
        """The same, in the subtree where the worker was last while there is a point left in it."""
        ledger = Ledger(self.space, history)
        is_open = (entry for entry in self._points if not ledger.at(entry[2]).closed(self.options.retries))
        if self.options.order == "prefix":
            chosen = self._next_in_tree(list(is_open), history, near)
        else:
            chosen = next(is_open, None)
        if chosen is None:
            return None
        index, params, point = chosen
        failures = ledger.at(point).failures
        attrs = {"strategy": self.name, "point": index, "attempt": failures}
        return Proposal(dict(params), attrs, slot=f"grid:{index}:{failures}")

    @property
    def repeated_prefixes(self) -> int:
        """One at a time, in the order of prefixes."""
        return int(self.options.order == "prefix")

    def exhausted(self, history: Sequence[FrozenTrial]) -> bool:
        """Whether every point is scored, or failed too often."""
        ledger = Ledger(self.space, history)
        records = (ledger.at(point) for _, _, point in self._points)
        return all(r.scored or (r.closed(self.options.retries) and not r.in_flight) for r in records)

    def planned(self) -> int:
        """The number of points."""
        return self._size if self.options.unmerged else len(self._points)

    def plans(self, params: Params) -> bool:
        """Whether the grid has the point."""
        if not self.options.unmerged and self.space.is_unmerged(params):
            return False
        choices = zip(self.space.dimensions, self._choices, strict=True)
        return all(any(_same(params[d.name], value) for value in values) for d, values in choices)

    def _next_in_tree(
        self, candidates: list[_Entry], history: Sequence[FrozenTrial], near: Params | None
    ) -> _Entry | None:
        """Down from the first dimension: along with `near` as far as possible, then where fewest trials are in flight.

        A worker by itself goes through the points in their order, and several keep to subtrees of their own.
        """
        if not candidates:
            return None
        here = self.space.find(near or {})
        flying = [p for t in history if t.state in IN_FLIGHT and (p := self.space.find(t.params)) is not None]
        for level in range(len(self.space.dimensions)):
            busy = Counter(point[level] for point in flying)
            values = dict.fromkeys(point[level] for _, _, point in candidates)
            value = min(values, key=lambda v: (here is None or here[level] != v, busy[v]))
            if here is not None and here[level] != value:
                here = None
            candidates = [entry for entry in candidates if entry[2][level] == value]
            flying = [point for point in flying if point[level] == value]
        return candidates[0]

    def _values(self, dimension: Dimension) -> tuple[float, ...]:
        choices = dimension.choices()
        if choices is None and self.options.points is not None:
            return dimension.evenly(self.options.points)
        return choices or ()

    @property
    def _size(self) -> int:
        return math.prod(len(c) for c in self._choices)

    @cached_property
    def _points(self) -> list[_Entry]:
        """Index in prefix order, parameters and identity of every point, in the order they are proposed."""
        names = [d.name for d in self.space.dimensions]
        every = [dict(zip(names, values, strict=True)) for values in product(*self._choices)]
        points = [(index, params, self.space.point(params)) for index, params in enumerate(every)]
        if not self.options.unmerged:
            points = [entry for entry in points if not self.space.is_unmerged(entry[1])]
        if self.options.order == "shuffled":
            shuffled = np.random.default_rng(derive_seed(self.seed, self.name)).permutation(len(points))
            points = [points[i] for i in shuffled]
        return points


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
