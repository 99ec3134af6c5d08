"""CMA-ES: a normal distribution that moves and stretches towards what scored well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from cmaes import CMA, CMAwM, SepCMA
from pydantic import Field, model_validator

from mergesearch.errors import Problem, StudyFileError
from mergesearch.search.ledger import score
from mergesearch.search.population import Algorithm, Member, PopulationStrategy, Scores
from mergesearch.search.seeds import derive_seed
from mergesearch.search.strategy import StrategyOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial

    from mergesearch.search.points import SearchSpace

STALE_GENERATIONS = 20
"""After so many generations without a new point, a search of a finite space starts again elsewhere."""


class CMAESOptions(StrategyOptions):
    """Options of `cmaes`."""

    population_size: int | None = Field(None, ge=4)
    """Members of a generation; None for 4 + ⌊3 ln D⌋. A multiple of the number of workers keeps all busy."""
    x0: Literal["centre", "template", "best"] | dict[str, float] = "centre"
    """Where the first mean lies: the centre of all ranges, the template source alone, the best trial enqueued
    before, or values by parameter name (the centre for those not named). By default the best where the study starts
    from another one."""
    sigma0: float = Field(0.2, gt=0, le=1)
    """First standard deviation as a fraction of every range (Hansen 2016: up to .3; smaller suits
    small budgets)."""
    separable: bool = False
    """Learn variances only, no correlations: for many dimensions (Ros and Hansen 2008)."""
    lr_adapt: bool = False
    """Adapt the learning rate to the noise of scores (Nomura et al. 2023); it asks for larger budgets."""
    margin: bool | None = None
    """Keep a least probability for neighbouring values of dimensions with steps or listed values, so that
    they do not freeze (Hamano et al. 2022). None: on, unless one of the two above is."""
    restart: Literal["none", "ipop"] = "ipop"
    """What happens on convergence: the search ends, or starts again at a random mean with a larger population
    (Auger and Hansen 2005)."""
    restart_factor: int = Field(2, ge=1)
    """How much larger the population becomes with every restart."""

    @model_validator(mode="after")
    def _one_variant(self) -> CMAESOptions:
        chosen = [name for name in ("separable", "lr_adapt", "margin") if getattr(self, name)]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} are variants that exclude each other: keep one")
        return self


class CMAES(PopulationStrategy):
    """Covariance matrix adaptation by whole generations, replayed from the history.

    Dimensions are scaled to [0, 1], each on its own scale (logarithms, ranks of listed values).
    """

    name = "cmaes"
    title = "CMA evolution strategy"
    paper = "https://arxiv.org/abs/1604.00772"
    started = {"x0": "best"}  # noqa: RUF012
    Options = CMAESOptions
    options: CMAESOptions

    def __init__(self, space: SearchSpace, options: CMAESOptions, seed: int) -> None:
        super().__init__(space, options, seed)
        self.adopts = options.x0 == "best"
        if options.separable and len(space.free) == 1:
            raise StudyFileError([Problem("needs at least two dimensions that vary, found 1", "separable")])
        if options.x0 == "template" and space.template is None:
            message = "the template alone is no point of the space: use `centre`, or give values by parameter name"
            raise StudyFileError([Problem(message, "x0")])
        if isinstance(options.x0, dict):
            self._check_point(options.x0)

    def start(self, adopted: Sequence[FrozenTrial]) -> Algorithm:
        """CMA-ES at its first mean."""
        free = self.space.free
        point: Mapping[str, float] = {}
        if self.options.x0 == "template":
            point = self.space.template or {}
        elif self.options.x0 == "best" and adopted:
            point = max(adopted, key=lambda t: (score(t) or 0.0, -t.number)).params
        elif isinstance(self.options.x0, dict):
            point = self.options.x0
        mean_D = np.array([d.to_unit(point[d.name]) if d.name in point else 0.5 for d in free])
        return _Replayed(self.space, self.options, self.seed, mean_D)

    def _check_point(self, x0: Mapping[str, float]) -> None:
        centre = {d.name: d.from_unit(0.5) for d in self.space.dimensions}
        try:
            self.space.coefficients(centre | dict(x0))
        except StudyFileError as error:
            raise StudyFileError([Problem(str(p), "x0") for p in error.problems]) from None


class _Replayed(Algorithm):
    """The `cmaes` package in the unit cube, with restarts.

    A member's genes are its positions before rounding to values, in the dimensions that have listed values or
    steps. Elsewhere the position follows from the parameter.
    """

    def __init__(self, space: SearchSpace, options: CMAESOptions, seed: int, mean_D: np.ndarray) -> None:
        self._space, self._options, self._seed = space, options, seed
        self._fixed = {d.name: d.low for d in space.dimensions if d.single}
        self._rounded = [k for k, d in enumerate(space.free) if d.choices() is not None]
        self._restarts = 0
        self._stale = 0
        self._optimizer = self._make(mean_D)

    def generation(self, index: int, given: Mapping[int, Member]) -> list[Member]:
        """Draws from the current distribution."""
        self._optimizer.reseed_rng(derive_seed(self._seed, "cmaes", index))
        drawn = [self._draw() for _ in range(self._optimizer.population_size)]
        return [self._settled(given.get(k, member), member) for k, member in enumerate(drawn)]

    def tell(self, members: Sequence[Member], values: Sequence[Scores], *, new: bool) -> None:
        """Move the distribution, and start again where it has converged or goes round in known points."""
        self._optimizer.tell([(self._position(m), -value) for m, (value,) in zip(members, values, strict=True)])
        self._stale = 0 if new else self._stale + 1
        if self._options.restart == "ipop" and (self._optimizer.should_stop() or self._stale >= STALE_GENERATIONS):
            self._restarts += 1
            self._stale = 0
            rng = np.random.default_rng(derive_seed(self._seed, "cmaes restart", self._restarts))
            self._optimizer = self._make(rng.random(len(self._space.free)))

    def converged(self) -> bool:
        """Whether the distribution has shrunk to nothing, and is not to start again."""
        return self._options.restart == "none" and self._optimizer.should_stop()

    def _draw(self) -> Member:
        drawn = self._optimizer.ask()
        position_D, genes_D = drawn if isinstance(drawn, tuple) else (drawn, drawn)
        params = {d.name: d.from_unit(float(u)) for d, u in zip(self._space.free, position_D, strict=True)}
        return Member(self._fixed | params, tuple(float(np.float32(genes_D[k])) for k in self._rounded))

    def _settled(self, given: Member, drawn: Member) -> Member:
        """`given` with genes: where it has none of its own, those drawn for the same point, or the point's."""
        if len(given.genes) == len(self._rounded):
            return given
        if given.params == drawn.params:
            return drawn
        units_D = self._units(given)
        return Member(given.params, tuple(float(units_D[k]) for k in self._rounded))

    def _position(self, member: Member) -> np.ndarray:
        """Where the optimizer drew a member, float64 [D]."""
        position_D = self._units(member)
        position_D[self._rounded] = member.genes
        return position_D

    def _units(self, member: Member) -> np.ndarray:
        return np.array([d.to_unit(member.params[d.name]) for d in self._space.free])

    def _make(self, mean_D: np.ndarray) -> CMA | CMAwM | SepCMA:
        options, free = self._options, self._space.free
        default = 4 + int(3 * np.log(len(free)))
        size = (options.population_size or default) * options.restart_factor**self._restarts
        bounds_D2 = np.tile([0.0, 1.0], (len(free), 1))
        common = {
            "mean": mean_D,
            "sigma": options.sigma0,
            "bounds": bounds_D2,
            "seed": 0,
            "population_size": size,
        }
        steps_D = np.array([0.0 if (c := d.choices()) is None else 1 / (len(c) - 1) for d in free])
        wanted = options.margin is None and not options.separable and not options.lr_adapt
        if steps_D.any() and (options.margin or wanted):
            return CMAwM(**common, steps=steps_D)
        if options.separable:
            return SepCMA(**common)
        return CMA(**common, lr_adapt=options.lr_adapt)
