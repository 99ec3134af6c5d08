"""Evolution: the best survive, mate and mutate (NSGA-II)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import optuna
from optuna.samplers import NSGAIISampler, nsgaii
from pydantic import Field, model_validator

from mergesearch.evaluation.objectives import undominated
from mergesearch.search.ledger import score, scores
from mergesearch.search.population import Algorithm, Member, PopulationStrategy, Scores
from mergesearch.search.quiet import quiet_optuna
from mergesearch.search.seeds import derive_seed
from mergesearch.search.strategy import StrategyOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from mergesearch.search.points import Params, SearchSpace

_CROSSOVERS = {
    "uniform": "UniformCrossover",
    "blx_alpha": "BLXAlphaCrossover",
    "sbx": "SBXCrossover",
    "vsbx": "VSBXCrossover",
    "spx": "SPXCrossover",
    "undx": "UNDXCrossover",
}


class EvolutionOptions(StrategyOptions):
    """Options of `evolution`."""

    population_size: int = Field(8, ge=2)
    """Members of a generation. A multiple of the number of workers keeps them all busy;
    small ones suit budgets under a few hundred trials."""
    crossover: Literal["uniform", "blx_alpha", "sbx", "vsbx", "spx", "undx"] = "blx_alpha"
    """How two parents (`spx`, `undx`: three) make a child. `uniform` only swaps coefficients, `blx_alpha`
    also draws between and a little beyond the parents (Eshelman and Schaffer 1993)."""
    crossover_prob: float = Field(0.9, ge=0, le=1)
    """How often a child has several parents; the others are copies before mutation."""
    swapping_prob: float = Field(0.5, ge=0, le=1)
    """`uniform`: how often a coefficient is taken from the second parent."""
    mutation_prob: float | None = Field(None, ge=0, le=1)
    """How often a coefficient is replaced by a uniform draw; None for 1 / D."""
    vary: Literal["all", "upper_first"] = "all"
    """`upper_first`: a child keeps the lowest coefficients of one survivor, as many as a die says from none to all but
    one. So the lowest change least often, and the layers below the first change need not be run again."""
    adopt: bool = True
    """Start from the best points evaluated before (sources alone, uniform average, another strategy's); they
    fill at most half of the first generation; the rest is random."""

    @model_validator(mode="after")
    def _enough_parents(self) -> EvolutionOptions:
        if self.crossover in ("spx", "undx") and self.population_size < 3:
            raise ValueError(f"{self.crossover} mates three parents: population_size must be at least 3")
        return self


class Evolution(PopulationStrategy):
    """NSGA-II (Deb et al. 2002), with one objective or several, by whole generations replayed from the history."""

    name = "evolution"
    title = "genetic algorithm (NSGA-II)"
    paper = "https://doi.org/10.1109/4235.996017"
    Options = EvolutionOptions
    options: EvolutionOptions

    def __init__(self, space: SearchSpace, options: EvolutionOptions, seed: int) -> None:
        super().__init__(space, options, seed)
        self.adopts = options.adopt

    @property
    def seeks_front(self) -> bool:
        """Where the study has several objectives."""
        return self.objectives is not None and self.objectives.several

    @property
    def repeated_prefixes(self) -> int:
        """Children share theirs with any of the survivors."""
        return self.options.population_size if self.options.vary == "upper_first" else 0

    def start(self, adopted: Sequence[FrozenTrial]) -> Algorithm:  # noqa: ARG002
        """An empty population."""
        n_objectives = len(self.objectives.names) if self.seeks_front and self.objectives else 1
        return _NSGAII(self.space, self.options, self.seed, n_objectives)

    def founders(self, adopted: Sequence[FrozenTrial]) -> list[Params]:
        """The best different points of `adopted`; those that no other beats in all objectives before the others."""
        beaten = [True] * len(adopted)
        if self.seeks_front and adopted:
            told = [self.told_of(score(t) or 0.0, scores(t)) for t in adopted]
            beaten = list(~undominated(np.array(told, dtype=np.float64)))
        order = sorted(zip(beaten, adopted, strict=True), key=lambda e: (e[0], -(score(e[1]) or 0.0), e[1].number))
        ranked = [trial for _, trial in order]
        different = {self.space.point(t.params): self.space.snap(t.params) for t in reversed(ranked)}
        return list(reversed(different.values()))[: self.options.population_size // 2]


class _PointSampler(NSGAIISampler):
    """Optuna's sampler, kept to points of the space, and to a member that exists already where one is given."""

    def __init__(
        self, space: SearchSpace, given: Member | None, kept: np.random.Generator | None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._space, self._given, self._kept = space, given, kept

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A child of the survivors; empty in the first generation."""
        child = super().sample_relative(study, trial, search_space)
        survivors = self.get_parent_population(study, self.get_trial_generation(study, trial))
        if self._kept is not None and survivors:
            survivor = survivors[self._kept.integers(len(survivors))]
            lowest = [d.name for d in self._space.free][: self._kept.integers(len(self._space.free))]
            child |= {name: survivor.params[name] for name in lowest}
        return {name: self._point(name, value) for name, value in child.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw: in the first generation, and for a mutation."""
        drawn = super().sample_independent(study, trial, param_name, param_distribution)
        return self._point(param_name, drawn)

    def _point(self, name: str, drawn: Any) -> float | int:
        dimension = self._space.by_name[name]
        value = dimension.from_sampling(drawn) if self._given is None else self._given.params[name]
        return dimension.to_sampling(value)


class _NSGAII(Algorithm):
    """Optuna's sampler on a study in memory whose trials are the members of all generations."""

    def __init__(self, space: SearchSpace, options: EvolutionOptions, seed: int, n_objectives: int) -> None:
        self._space, self._options, self._seed = space, options, seed
        self._distributions = {d.name: d.sampling_distribution() for d in space.dimensions}
        with quiet_optuna():
            self._study = optuna.create_study(directions=["maximize"] * n_objectives)
        self._asked: list[Trial] = []

    def generation(self, index: int, given: Mapping[int, Member]) -> list[Member]:
        """Random members at first, then children of the survivors."""
        members = []
        self._asked = []
        with quiet_optuna():
            for position in range(self._options.population_size):
                # One seed per member: a given one must not shift the draws of the others.
                seed = derive_seed(self._seed, "evolution", index, position)
                self._study.sampler = self._sampler(seed, given.get(position))
                trial = self._study.ask(self._distributions)
                self._asked.append(trial)
                point = {d.name: d.from_sampling(trial.params[d.name]) for d in self._space.dimensions}
                members.append(Member(point))
        return members

    def tell(self, members: Sequence[Member], values: Sequence[Scores], *, new: bool) -> None:  # noqa: ARG002
        """The survivors are chosen when the next generation is asked for."""
        for trial, told in zip(self._asked, values, strict=True):
            self._study.tell(trial, list(told))

    def _sampler(self, seed: int, given: Member | None) -> NSGAIISampler:
        options = self._options
        arguments: dict[str, Any] = {}
        if options.crossover == "uniform":
            arguments["swapping_prob"] = options.swapping_prob
        kept = np.random.default_rng(derive_seed(seed, "kept")) if options.vary == "upper_first" else None
        return _PointSampler(
            self._space,
            given,
            kept,
            population_size=options.population_size,
            crossover=getattr(nsgaii, _CROSSOVERS[options.crossover])(**arguments),
            crossover_prob=options.crossover_prob,
            swapping_prob=options.swapping_prob,
            mutation_prob=options.mutation_prob,
            seed=seed,
        )
