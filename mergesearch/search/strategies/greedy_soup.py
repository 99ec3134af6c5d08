"""Greedy soup: sources enter the uniform average one by one, and stay where the score does not fall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from mergesearch.errors import Problem, StudyFileError
from mergesearch.search.ledger import Ledger, PointRecord
from mergesearch.search.strategy import Proposal, Strategy, StrategyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from mergesearch.search.points import Params, SearchSpace

Soup = tuple[str, ...]
"""Its sources, in the order of the space."""


class GreedySoupOptions(StrategyOptions):
    """Options of `greedy_soup`."""

    retries: int = Field(1, ge=0)
    """How often a soup whose trial failed is tried again; after that it is passed over."""


class GreedySoup(Strategy):
    """Recipe 1 of Wortsman et al. 2022: each source alone, then one after the other, best first, into the average.

    Weights are 1/n for the n sources of a soup and 0 for the others, in all groups together. Other coefficients stay
    at their constants or defaults.
    """

    name = "greedy_soup"
    title = "uniform average of the sources that help (model soups)"
    paper = "https://arxiv.org/abs/2203.05482"
    finite = True
    Options = GreedySoupOptions
    options: GreedySoupOptions

    def __init__(self, space: SearchSpace, options: GreedySoupOptions, seed: int) -> None:
        super().__init__(space, options, seed)
        if choices := [d.name for d in space.free if not d.ordered]:
            message = "greedy_soup averages sources and makes no choice: give one prompt, or take another strategy"
            raise StudyFileError([Problem(f"{message} (grid, tpe)", name) for name in choices])
        self._sources = _sources(space)
        n = len(self._sources)
        # Soups of every size that each source is in, and that each is not in.
        turns = [(*self._sources[i:], *self._sources[:i]) for i in range(n)]
        soups = [turn[:size] for size in range(1, n + 1) for turn in turns]
        missing = next((soup for soup in soups if not self._locate(soup)), None)
        if missing is not None or not self._sources:
            shares = f"weight {1 / len(missing):.3g} for {', '.join(missing)} and 0 for all others" if missing else ""
            message = (
                "greedy_soup averages some of the sources: every `weight` has to reach 0 and each 1/n in all groups "
                f"together, and other coefficients their defaults. This space lacks {shares or 'weights of sources'}: "
                "write `weight: {low: 0, high: 1}`"
            )
            raise StudyFileError([message])

    def propose(self, history: Sequence[FrozenTrial], number: int) -> Proposal | None:  # noqa: ARG002
        """A source alone that nobody scored, or else the next soup."""
        ledger = Ledger(self.space, history)
        soup, _ = self._next(ledger)
        if soup is None:
            return None
        attempt = self._record(ledger, soup).failures
        attrs = {"strategy": self.name, "soup": list(soup), "attempt": attempt}
        return Proposal(self._params(soup), attrs, slot=f"{self.name}:{'+'.join(soup)}:{attempt}")

    def exhausted(self, history: Sequence[FrozenTrial]) -> bool:
        """Whether every source was tried alone and in the soup."""
        return self._next(Ledger(self.space, history)) == (None, False)

    def planned(self) -> int:
        """Every source alone, and each but the best in a soup."""
        return 2 * len(self._sources) - 1

    def plans(self, params: Params) -> bool:
        """Whether it is a source alone, or the one soup of two."""
        certain: list[Soup] = [(source,) for source in self._sources]
        certain += [self._sources] if len(self._sources) == 2 else []
        return any(self.space.point(self._params(soup)) == self.space.point(params) for soup in certain)

    def _next(self, ledger: Ledger) -> tuple[Soup | None, bool]:
        """What to evaluate now, and whether there is or may be more to come."""
        alone: dict[Soup, PointRecord] = {(s,): self._record(ledger, (s,)) for s in self._sources}
        for soup, record in alone.items():
            if not record.closed(self.options.retries):
                return soup, True
        if any(_awaited(record) for record in alone.values()):
            return None, True
        scores = {soup: record.value for soup, record in alone.items() if record.value is not None}
        ranked = sorted(scores, key=lambda soup: -scores[soup])
        kept, best = (ranked[0], scores[ranked[0]]) if ranked else ((), 0.0)
        for further in ranked[1:]:
            soup = tuple(source for source in self._sources if source in kept or source in further)
            record = self._record(ledger, soup)
            if not record.closed(self.options.retries):
                return soup, True
            if _awaited(record):
                return None, True
            if record.value is not None and record.value >= best:
                kept, best = soup, record.value
        return None, False

    def _record(self, ledger: Ledger, soup: Soup) -> PointRecord:
        return ledger.at(self.space.point(self._params(soup)))

    def _params(self, soup: Soup) -> Params:
        found = self._locate(soup)
        assert found is not None, "weights per source are independent, so the constructor has seen enough soups"
        return found

    def _locate(self, soup: Soup) -> Params | None:
        """The point at which the sources of `soup` share the weight in all groups, and the others have 0."""
        weights = {source: 1 / len(soup) if source in soup else 0.0 for source in self._sources}
        constants = self.space.constants
        found = self.space.locate({group: {**constants[group], "weight": weights} for group in self.space.groups})
        return None if found is None else self.space.snap(found)


def _awaited(record: PointRecord) -> bool:
    return record.in_flight and not record.scored


def _sources(space: SearchSpace) -> Soup:
    """The sources that have weights; none where the method has no weights."""
    anywhere = space.coefficients({d.name: d.low for d in space.dimensions})
    weights = anywhere[space.groups[0]].get("weight")
    return tuple(weights) if isinstance(weights, Mapping) else ()
