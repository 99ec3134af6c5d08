"""Random: independent uniform draws, the baseline that every other strategy has to beat."""

from __future__ import annotations

from optuna.samplers import BaseSampler, RandomSampler

from mergesearch.search.sampling import SamplerOptions, SamplerStrategy


class RandomOptions(SamplerOptions):
    """Options of `random`."""


class Random(SamplerStrategy):
    """Uniform draws, on each dimension's own scale; they depend on the trial's number and on no score."""

    name = "random"
    title = "independent uniform draws"
    paper = "https://www.jmlr.org/papers/v13/bergstra12a.html"
    Options = RandomOptions
    options: RandomOptions

    def sampler(self, seed: int) -> BaseSampler:
        """Optuna's random sampler."""
        return RandomSampler(seed=seed)
