"""Which coefficients scores depend on most.

Functional ANOVA on random forests (Hutter, Hoos and Leyton-Brown, An efficient approach for assessing hyperparameter
importance, ICML 2014), as Optuna does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import create_trial

from mergesearch.search.points import SearchSpace
from mergesearch.search.quiet import quiet_optuna

MOST_POINTS = 500
"""The forest learns from so many, evenly taken from all: seconds are enough for a hint."""
LEAST_POINTS = 4
"""From fewer nothing can be said."""


def importances(space: SearchSpace, points: Sequence[Mapping[str, float]], values: Sequence[float]) -> dict[str, float]:
    """The share of each coefficient that has more than one value in the variance of the scores.

    Args:
        space: what is searched.
        points: points of it.
        values: their scores.

    Returns:
        Name to share, the most important first; the shares add up to 1. Empty where there is nothing to go by:
        too few points, or none that differ in score.
    """
    names = [d.name for d in space.free]
    if len(names) == 1:
        return {names[0]: 1.0}
    if len(points) < LEAST_POINTS or min(values) == max(values):
        return {}
    chosen = range(0, len(points), -(-len(points) // MOST_POINTS))
    distributions = {d.name: d.sampling_distribution() for d in space.free}
    with quiet_optuna():
        study = optuna.create_study()
        study.add_trials(
            create_trial(
                params={d.name: d.to_sampling(points[i][d.name]) for d in space.free},
                distributions=distributions,
                value=values[i],
            )
            for i in chosen
        )
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=names)
    return {name: float(share) for name, share in sorted(found.items(), key=lambda f: (-f[1], names.index(f[0])))}
