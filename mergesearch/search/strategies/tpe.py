"""TPE: draw from a density of the good points, prefer where the bad ones are rare."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial
from pydantic import Field, model_validator

from mergesearch.search.sampling import SamplerOptions, SamplerStrategy


class TPEOptions(SamplerOptions):
    """Options of `tpe`; defaults are those of Optuna 5, written out because earlier versions differ."""

    n_startup_trials: int = Field(10, ge=1)
    """Uniform draws until this many trials of the space are scored, the ones enqueued first included."""
    n_ei_candidates: int = Field(24, ge=1)
    """Candidates drawn from the good density, of which the one with the best ratio is proposed."""
    multivariate: bool = True
    """One joint density of all dimensions rather than one each: coefficients of a merge act together."""
    group: bool = False
    """Split the joint density where trials of the study have different parameters; needs `multivariate`."""
    constant_liar: bool = True
    """Count trials in flight as bad ones, so that parallel workers spread out."""

    @model_validator(mode="after")
    def _group_is_multivariate(self) -> TPEOptions:
        if self.group and not self.multivariate:
            raise ValueError("`group: true` needs `multivariate: true`")
        return self


class TPE(SamplerStrategy):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), joint over dimensions."""

    name = "tpe"
    title = "tree-structured Parzen estimator"
    paper = "https://arxiv.org/abs/2304.11127"
    Options = TPEOptions
    options: TPEOptions

    def sampler(self, seed: int) -> BaseSampler:
        """Optuna's TPE sampler."""
        chosen: dict[str, Any] = self.options.model_dump(exclude={"retries"})
        if self.options.group or not self.options.multivariate:
            return TPESampler(**chosen, seed=seed)
        return _Joint({d.name: d.sampling_distribution() for d in self.space.free}, **chosen, seed=seed)


class _Joint(TPESampler):
    """Optuna's with less work for the same proposals: both halves of it grow with the number of trials."""

    def __init__(self, dimensions: dict[str, BaseDistribution], **options: Any) -> None:
        super().__init__(**options)
        self._dimensions = dict(sorted(dimensions.items()))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """What is searched anyway; Optuna finds it out by comparing the distributions of all trials."""
        return dict(self._dimensions)

    def _get_internal_repr(
        self,
        trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
        study: Study,  # noqa: ARG002
    ) -> dict[str, NDArray[np.float64]]:
        """The trials' values by dimension. All trials of the mirror have all of them, and they are numbers."""
        names = list(search_space)
        get = itemgetter(*names)
        values_TD = np.array([get(t.params) for t in trials], dtype=np.float64).reshape(-1, len(names))
        return dict(zip(names, values_TD.T.copy(), strict=True))
