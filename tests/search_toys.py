"""Small search spaces, toy objectives and a toy driver for tests of strategies."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState, create_trial

from mergesearch.errors import StudyFileError
from mergesearch.evaluation.judgements import Judgements
from mergesearch.evaluation.result import QUERIES_ATTR
from mergesearch.merging.registry import METHODS
from mergesearch.search.dimension import Dimension
from mergesearch.search.points import Binding, Params, SearchSpace
from mergesearch.search.registry import STRATEGIES, Strategy
from mergesearch.search.space import build_space
from mergesearch.search.strategy import PROPOSAL_ATTR
from mergesearch.surrogate.bank import CollectionBank, EmbeddingBank
from mergesearch.surrogate.report import ScreeningReport
from mergesearch.surrogate.screening import Screening, screen

SEGMENTS = ("segment_1", "segment_2")


def space_of(
    config: Mapping[str, Any],
    *,
    method: str = "linear",
    sources: tuple[str, ...] = ("retriever", "domain"),
    groups: tuple[str, ...] = SEGMENTS,
    depths: Sequence[float] = (),
    base: str | None = None,
) -> SearchSpace:
    placed = dict(zip(groups, depths or [(i + 0.5) / len(groups) for i in range(len(groups))], strict=True))
    return build_space(METHODS[method], sources=sources, groups=placed, template="retriever", config=config, base=base)


def problems_of(config: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(StudyFileError) as caught:
        space_of(config, **kwargs)
    return [str(p) for p in caught.value.problems]


def make_space(*dimensions: Dimension) -> SearchSpace:
    """A space whose coefficients are its parameters, in one group."""

    def setting(name: str) -> Callable[[float], Mapping[str, float]]:
        return lambda value: {name: value}

    bindings = tuple(Binding({d.name: 1.0}, ("all",), setting(d.name)) for d in dimensions)
    return SearchSpace(dimensions, ("all",), {"all": {}}, bindings)


SPACES: dict[str, SearchSpace] = {
    "one": make_space(Dimension("x", 0.0, 1.0)),
    "three": make_space(*[Dimension(f"x{i}", -1.0, 1.0) for i in range(3)]),
    "steps": make_space(Dimension("x", 0.0, 1.0, step=0.05), Dimension("y", 0.1, 0.7, step=0.1)),
    "few": make_space(
        Dimension.of_values("x", (0.0, 0.25, 0.5, 0.75, 1.0)), Dimension.of_values("y", (1.0, 3.0, 10.0))
    ),
    "mixed": make_space(
        Dimension("log", 1e-3, 10.0, log=True),
        Dimension.of_values("uneven", (0.0, 0.1, 0.5, 3.0)),
        Dimension("point", 0.3, 0.3),
        Dimension("step", 0.0, 1.0, step=0.25),
        Dimension.of_values("value", (2.0,)),
    ),
    "log": make_space(Dimension("x", 0.01, 100.0, log=True)),
    "point": make_space(Dimension("x", 0.5, 0.5), Dimension.of_values("y", (7.0,))),
}


def soup_space(sources: str, weight: object, groups: Sequence[str] = ("all",)) -> SearchSpace:
    """A space of weights of sources that are called by one letter each."""
    return build_space(
        METHODS["linear"],
        sources=tuple(sources),
        groups=dict.fromkeys(groups, 0.5),
        template=sources[0],
        config={"weight": weight},
    )


SOUPS: dict[str, SearchSpace] = {
    "one": soup_space("ab", {"low": 0, "high": 1}, ["segment_1", "segment_2"]),
    "three": soup_space("abcdefghijklm", {"low": -1, "high": 1}),
    "steps": soup_space("ab", {"low": 0, "high": 1, "step": 0.05}),
    "few": soup_space("abcde", {"low": 0, "high": 1.5}),
    "mixed": soup_space("abcdefgh", {"low": 0, "high": 2, "tie": "groups"}, ["segment_1", "segment_2"]),
    "log": soup_space("abc", {"low": 0, "high": 1}),
    "point": soup_space("a", {"values": [1]}),
}
"""In the place of `SPACES`, for a strategy that only searches weights of sources."""


def space_for(strategy: str, name: str) -> SearchSpace:
    """The space of that name that the strategy searches."""
    return (SOUPS if strategy == "greedy_soup" else SPACES)[name]


def make_strategy(name: str, space: SearchSpace, seed: int = 0, **options: Any) -> Strategy:
    """A strategy with options that make it leave its start-up phase within a short test."""
    short: dict[str, dict[str, Any]] = {
        "tpe": {"n_startup_trials": 4},
        "gp": {"n_startup_trials": 3},
        "grid": {"points": 4},
        "evolution": {"population_size": 4},
        "embedding_surrogate": {"candidates": 64, "patience": 100},
    }
    chosen = STRATEGIES[name]
    strategy = chosen(space, chosen.Options(**{**short.get(name, {}), **options}), seed)
    if chosen.needs_embeddings:
        strategy.screener = toy_screener
    return strategy


def toy_screener(screening: Screening) -> ScreeningReport:
    """Predictions from made-up embeddings: smooth functions of the coefficients, the same in every process."""
    random = np.random.default_rng(0)
    n_queries, n_documents, width = 6, 20, 8
    points = np.asarray(screening.points)
    slopes = random.normal(size=(64, n_queries + n_documents, width))[: points.shape[1]]
    texts = random.normal(size=(n_queries + n_documents, width)) + np.tensordot(points, slopes, axes=1)
    texts = torch.nn.functional.normalize(torch.from_numpy(texts), dim=-1)
    ids = [f"d{i}" for i in range(n_documents)]
    qrels = {f"q{i}": {f"d{i}": 1, f"d{i + 7}": 2} for i in range(n_queries)}
    judgements = Judgements.prepare(list(qrels), ids, qrels)
    bank = CollectionBank(texts[:, :n_queries], texts[:, n_queries:], judgements)
    measured = EmbeddingBank(screening.keys, [bank]).per_query_scores(np.eye(len(points)), screening.metric)
    outside = {key: measured.mean(axis=0) for key in screening.references if key not in screening.keys}
    return screen(screening, EmbeddingBank(screening.keys, [bank]), measured, outside)


def make_trial(
    number: int,
    space: SearchSpace,
    params: Mapping[str, float],
    state: TrialState = TrialState.COMPLETE,
    value: float | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial as a storage would show it."""
    distributions = {k: v for k, v in space.distributions().items() if k in params}
    user_attrs: dict[str, Any] = {} if attrs is None else {PROPOSAL_ATTR: dict(attrs)}
    if state == TrialState.COMPLETE and value is not None:
        user_attrs[QUERIES_ATTR] = 6
    trial = create_trial(
        state=state, value=value, params=dict(params), distributions=distributions, user_attrs=user_attrs
    )
    trial.number = number
    return trial


def quadratic(space: SearchSpace) -> Callable[[Params], float]:
    """A bowl with its top at 70% of every range; the best value is 0."""
    return lambda params: -sum((d.to_unit(params[d.name]) - 0.7) ** 2 for d in space.dimensions)


def drive(
    strategy: Strategy, n_trials: int, objective: Callable[[Params], float], history: Sequence[FrozenTrial] = ()
) -> list[FrozenTrial]:
    """One worker that never fails. Returns the whole history."""
    trials = list(history)
    while len(trials) < n_trials and not strategy.exhausted(trials):
        proposal = strategy.propose(trials, len(trials))
        assert proposal is not None, "nothing is in flight, so there is nothing to wait for"
        value = objective(proposal.params)
        trials.append(make_trial(len(trials), strategy.space, proposal.params, value=value, attrs=proposal.attrs))
    return trials


def drive_in_parallel(
    strategy: Strategy,
    n_trials: int,
    objective: Callable[[Params], float],
    *,
    workers: int,
    failing: float = 0.0,
    seed: int = 0,
    history: Sequence[FrozenTrial] = (),
) -> list[FrozenTrial]:
    """Several workers that finish in random order and fail at random. Ends with nothing in flight."""
    rng = random.Random(seed)
    trials = list(history)
    flying = [t.number for t in trials if t.state == TrialState.RUNNING]
    while True:
        done = len(trials) >= n_trials or strategy.exhausted(trials)
        proposal = None if done or len(flying) >= workers else strategy.propose(trials, len(trials))
        if proposal is not None:
            flying.append(len(trials))
            running = make_trial(len(trials), strategy.space, proposal.params, TrialState.RUNNING, attrs=proposal.attrs)
            trials.append(running)
        elif flying:
            number = flying.pop(rng.randrange(len(flying)))
            old = trials[number]
            state, value = TrialState.COMPLETE, None
            if rng.random() < failing:
                state = TrialState.FAIL
            else:
                value = objective(old.params)
            attrs = old.user_attrs.get(PROPOSAL_ATTR)
            trials[number] = make_trial(number, strategy.space, old.params, state, value, attrs)
        elif done or strategy.exhausted(trials):
            return trials
        else:
            raise AssertionError("a strategy waits although nothing is in flight")
