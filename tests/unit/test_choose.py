"""The choice rule: properties of `pick` on made-up scores, and distances of recipes to their sources."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.recipe import GroupRecipe, MergeRecipe
from mergesearch.resolving import load_study
from mergesearch.results.choose import Candidate, choose, luck_in, pick
from mergesearch.results.distance import Distances
from mergesearch.results.status import read_status
from mergesearch.session import open_store
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from tests.tiny_studies import make_study

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def collection(scores: Sequence[float], *, name: str = "c", weight: float = 1.0) -> CollectionScores:
    ids = tuple(f"q{i}" for i in range(len(scores)))
    return CollectionScores(name, "ndcg@10", ids, np.array(scores, dtype=np.float64), weight)


def candidate(number: int, scores: Sequence[CollectionScores], distance: float) -> Candidate:
    total = sum(c.weight for c in scores)
    value = sum(c.weight * c.mean for c in scores) / total
    return Candidate(number, f"trial {number}", value, tuple(scores), distance, "retriever", f"{number:064x}")


@st.composite
def studies(draw: st.DrawFn) -> list[Candidate]:
    """Trials on two collections; few distinct scores and distances, so that ties are common."""
    sizes = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    weights = draw(st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.25, 1.0])))
    found = []
    for number in range(draw(st.integers(1, 8))):
        scores = [
            collection(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n)), name=name, weight=w)
            for n, name, w in zip(sizes, "ab", weights, strict=True)
        ]
        found.append(candidate(number, scores, draw(st.sampled_from([0.0, 0.25, 0.5, math.inf]))))
    return found


few = settings(max_examples=40, deadline=None)


def by_number(candidates: Sequence[Candidate], number: int) -> Candidate:
    return next(c for c in candidates if c.number == number)


def sources(trials: Sequence[Candidate]) -> list[Candidate]:
    return [t for t in trials if t.distance == 0]


@few
@given(studies())
def test_the_choice_is_a_highest_trial_or_the_best_source(trials: list[Candidate]) -> None:
    choice = pick(trials)
    chosen, highest = by_number(trials, choice.number), max(t.value for t in trials)
    assert choice.best_value == highest
    if choice.verdict == "source":
        assert chosen.distance == 0
        assert chosen.value == max(t.value for t in sources(trials))
    else:
        assert chosen.value == highest
    assert choice.expected == choice.value - choice.optimism


@few
@given(studies())
def test_a_merge_is_chosen_just_where_its_gain_is_more_than_its_luck(trials: list[Candidate]) -> None:
    choice = pick(trials)
    if not sources(trials):
        assert (choice.verdict, choice.source_number, choice.gain, choice.gain_interval) == (
            "unknown",
            None,
            None,
            None,
        )
        return
    assert choice.gain is not None
    assert choice.gain == pytest.approx(max(t.value for t in trials) - max(t.value for t in sources(trials)))
    assert choice.gain_optimism is not None
    assert 0 <= choice.gain_optimism <= choice.best_optimism
    assert (choice.verdict == "merge") == (choice.gain > choice.gain_optimism)
    assert choice.source_label == f"trial {choice.source_number}"


@few
@given(studies())
def test_luck_is_never_negative_and_a_source_owes_no_more_to_it(trials: list[Candidate]) -> None:
    choice = pick(trials)
    assert 0 <= choice.optimism <= 1
    assert 0 <= choice.best_optimism <= 1
    if len(sources(trials)) == 1 and choice.verdict == "source":
        assert choice.optimism == 0  # there was nothing to choose from


@few
@given(studies())
def test_a_source_that_scores_highest_is_chosen(trials: list[Candidate]) -> None:
    value = max(t.value for t in trials)
    source = replace(trials[0], value=value + 1e-9, distance=0.0, number=99, label="retriever alone")
    choice = pick([*trials, source])
    assert (choice.number, choice.verdict, choice.gain) == (99, "source", 0)


@few
@given(studies(), st.randoms(use_true_random=False))
def test_the_order_and_numbers_of_trials_do_not_matter(trials: list[Candidate], random: Any) -> None:
    numbers = [t.number for t in trials]
    random.shuffle(numbers)
    renumbered = [replace(t, number=n) for t, n in zip(trials, numbers, strict=True)]
    once = {t.number: t.fingerprint for t in trials}
    again = {t.number: t.fingerprint for t in renumbered}
    random.shuffle(renumbered)
    first, second = pick(trials), pick(renumbered)
    assert once[first.number] == again[second.number]
    assert (first.optimism, first.gain_interval) == (second.optimism, second.gain_interval)


@few
@given(studies(), st.sampled_from([0.25, 2.0, 8.0]))
def test_scaling_all_collection_weights_changes_nothing(trials: list[Candidate], factor: float) -> None:
    scaled = [replace(t, scores=tuple(replace(c, weight=c.weight * factor) for c in t.scores)) for t in trials]
    assert pick(scaled) == pick(trials)


def noisy(seed: int, lifted: float, n_queries: int = 60) -> list[Candidate]:
    """A source and 20 merges that differ from it by noise of .1 a query, one of them better by `lifted`."""
    rng = np.random.default_rng(seed)
    common = rng.uniform(0.3, 0.7, n_queries)
    rows = [common, *(common + rng.normal(lifted if i == 7 else 0.0, 0.1, n_queries) for i in range(20))]
    return [candidate(i, [collection(list(row))], 0.5 if i else 0.0) for i, row in enumerate(rows)]


def test_where_merges_differ_by_noise_alone_the_source_is_recommended() -> None:
    # The highest of 20 gains .0241 on average (1.867 standard errors of .1 / √60), and that is luck.
    choices = [pick(noisy(seed, 0.0)) for seed in range(40)]
    assert np.mean([c.best_optimism for c in choices]) == pytest.approx(0.0241, rel=0.15)
    assert np.mean([c.gain for c in choices if c.gain is not None]) == pytest.approx(0.0241, rel=0.15)
    by_plain_maximum = [c for c in choices if c.best_number != 0]
    assert len(by_plain_maximum) == 40
    assert np.mean([c.verdict == "source" for c in choices]) > 0.4
    for choice in choices:
        if choice.verdict == "merge":  # the luckiest
            assert choice.gain_interval is not None
            assert ("so it may be no gain at all" in choice.describe()) == (choice.gain_interval[0] <= 0)
    lucky = max(choices, key=lambda c: c.best_optimism - (c.gain or 0))
    assert "no gain is to be expected, so the source is recommended" in lucky.describe()
    assert f"highest: trial {lucky.best_number}" in lucky.describe()


def test_a_merge_that_is_better_by_far_is_chosen_and_its_interval_holds_what_it_is_better_by() -> None:
    choices = [pick(noisy(seed, 0.1)) for seed in range(40)]
    assert {(c.number, c.verdict) for c in choices} == {(8, "merge")}
    assert max(c.optimism for c in choices) < 0.002
    held = [c.gain_interval[0] <= 0.1 <= c.gain_interval[1] for c in choices if c.gain_interval is not None]
    assert sum(held) >= 34  # 38 are expected
    assert all("of which about 0.00" in c.describe() and "no gain at all" not in c.describe() for c in choices)
    assert "it is also the highest" in choices[0].describe()


def test_equal_merges_have_no_luck_and_the_nearest_is_chosen() -> None:
    same = [candidate(0, [collection([0.5, 0.2])], 0.5), candidate(1, [collection([0.5, 0.2])], 0.0)]
    choice = pick(same)
    assert (choice.number, choice.best_number, choice.verdict) == (1, 0, "source")
    assert (choice.optimism, choice.best_optimism, choice.gain_interval) == (0, 0, (0, 0))
    assert "of equal scores the merge nearer to retriever is preferred" in choice.describe()
    assert "no merge scores more than trial 1 (trial 1), so the source is recommended" in choice.describe()


def test_without_a_source_nothing_is_recommended() -> None:
    choice = pick([candidate(0, [collection([0.5, 0.2])], 0.5), candidate(1, [collection([0.1, 0.2])], 0.1)])
    assert (choice.number, choice.verdict) == (0, "unknown")
    assert "no source alone was evaluated" in choice.describe()
    assert "nothing is recommended" in choice.describe()


def test_what_a_strategy_says_of_its_own_luck_counts_when_it_is_more() -> None:
    trials = noisy(0, 0.1)
    screened = [replace(t, optimism=0.5) if t.number == 8 else t for t in trials]
    choice = pick(screened)
    assert (choice.best_number, choice.best_optimism, choice.verdict, choice.number) == (8, 0.5, "source", 0)
    level = noisy(0, 0.0)
    assert pick([replace(t, optimism=1e-9) for t in level]) == pick(level)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(make_study(tmp_path_factory.mktemp("linear")).file)


def recorded(store: StudyStore, recipe: MergeRecipe, scores: list[float], **attributes: Any) -> int:
    """A finished trial with these scores."""
    number = store.begin({}, {}, recipe=recipe, attrs=attributes, logical_id=recipe.fingerprint)
    store.finish(number, TrialResult((collection(scores),), {}, 0))
    return number


def test_a_study_in_its_database_gives_the_choice(linear: Study, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    common = rng.uniform(0.3, 0.6, 50)
    with open_store(linear, f"sqlite:///{tmp_path}/study.db") as store:
        domain = recorded(store, linear.recipe_of(linear.sources_alone()["domain"]), list(common - 0.1))
        retriever = recorded(store, linear.recipe_of(linear.sources_alone()["retriever"]), list(common), label="alone")
        half = merged(linear, weight={"retriever": 0.5, "domain": 0.5})
        better = recorded(store, half, list(common + rng.normal(0.05, 0.02, 50)), label="half")
        choice = choose(linear, store)
        assert (choice.number, choice.verdict, choice.source_number) == (better, "merge", retriever)
        assert choice.number != domain
        assert read_status(store).best_optimism == choice.best_optimism

        # What another program gave up is no candidate, whatever it had scored by then.
        given_up = create_trial(state=TrialState.PRUNED, value=0.99, user_attrs={"recipe": "0" * 64})
        store.study.add_trial(given_up)
        assert choose(linear, store) == choice

        screened = merged(linear, weight={"retriever": 0.6, "domain": 0.4})
        best = recorded(store, screened, list(common + 0.06), label="predicted", optimism=0.3)
        choice = choose(linear, store)
        assert (choice.best_number, choice.best_optimism) == (best, 0.3)
        assert (choice.number, choice.verdict) == (retriever, "source")
        assert read_status(store).best_optimism == 0.3


@pytest.fixture(scope="module")
def arithmetic(tmp_path_factory: pytest.TempPathFactory) -> Study:
    tiny = make_study(tmp_path_factory.mktemp("arithmetic"))
    tiny.change("sources", "origin", to="domain")
    tiny.change("merge", "method", to="task_arithmetic").change("merge", "base", to="origin")
    tiny.change("merge", "coefficients", to={"weight": {"low": -1, "high": 2}, "lambda": {"low": 0, "high": 2}})
    return load_study(tiny.file)


def merged(study: Study, **coefficients: Any) -> MergeRecipe:
    return study.recipe_of({g.name: coefficients for g in study.groups if g.merged})


@settings(max_examples=30, deadline=None)
@given(alpha=st.floats(-1, 2).map(lambda x: round(x, 3)), scale=st.sampled_from([1.0, 2.0, 0.1]))
def test_linear_distance_is_the_share_of_the_other_source(linear: Study, alpha: float, scale: float) -> None:
    recipe = merged(linear, weight={"retriever": alpha * scale, "domain": (1 - alpha) * scale})
    distance, nearest = Distances(linear).nearest(recipe)
    assert distance == pytest.approx(min(abs(1 - alpha), abs(alpha)), abs=1e-5)
    assert nearest == ("retriever" if alpha >= 0.5 else "domain")


def test_the_distance_of_every_source_alone_is_0(linear: Study, arithmetic: Study) -> None:
    for study in (linear, arithmetic):
        for source, coefficients in study.sources_alone().items():
            assert Distances(study).nearest(study.recipe_of(coefficients)) == (0.0, source)


def test_task_arithmetic_is_judged_by_what_its_coefficients_multiply_to(arithmetic: Study) -> None:
    distances = Distances(arithmetic)
    half = {"retriever": 0.5, "domain": 0.0}
    assert distances.nearest(merged(arithmetic, weight=half, **{"lambda": 2.0})) == (0.0, "retriever")
    assert distances.nearest(merged(arithmetic, weight=half, **{"lambda": 0.0})) == (0.0, "origin")
    # .1 of the retriever's task vector: .9 of the base and .1 of the retriever.
    distance, nearest = distances.nearest(merged(arithmetic, weight=half, **{"lambda": 0.2}))
    assert (distance, nearest) == (pytest.approx(0.1), "origin")
    # Twice the task vector is extrapolation: as far from the retriever as the base is.
    twice = merged(arithmetic, weight={"retriever": 2.0, "domain": 0.0}, **{"lambda": 1.0})
    assert distances.nearest(twice) == (pytest.approx(1.0), "retriever")


def test_groups_count_by_their_parameters_and_copied_ones_not_at_all(linear: Study) -> None:
    sizes = dict.fromkeys(linear.layout.places, 0)
    for p in linear.layout.parameters.values():
        sizes[p.place] += math.prod(p.shape)
    first = tuple(place for place in sizes if place.startswith("layer.0"))
    rest = tuple(place for place in sizes if place not in (*first, "embeddings"))
    alone, half = {"retriever": 1.0, "domain": 0.0}, {"retriever": 0.5, "domain": 0.5}
    groups = (
        GroupRecipe("embeddings", ("embeddings",), copy_from="domain"),
        GroupRecipe("first", first, coefficients={"weight": alone}),
        GroupRecipe("rest", rest, coefficients={"weight": half}),
    )
    recipe = replace(merged(linear, weight=alone), groups=groups)
    n_first, n_rest = (sum(sizes[place] for place in places) for places in (first, rest))
    expected = math.sqrt(n_rest / (n_rest + n_first) * 0.25)
    assert Distances(linear).nearest(recipe) == (pytest.approx(expected, abs=1e-6), "retriever")


def test_methods_that_are_no_linear_map_are_compared_by_coefficients(linear: Study) -> None:
    other = replace(linear, method=replace(linear.method, properties=frozenset({"one_hot"})))
    recipe = merged(linear, weight={"retriever": 0.75, "domain": 0.25})
    assert Distances(other).nearest(recipe) == (pytest.approx(0.25), "retriever")
    opaque = replace(linear, method=replace(linear.method, properties=frozenset()))
    assert Distances(opaque).nearest(recipe) == (math.inf, None)


def test_luck_too_small_for_its_digits_is_not_called_zero() -> None:
    assert luck_in(0.3736, 0.00001) == "0.3736 (a selection score; less than 0.0001 of it is luck)"
    assert luck_in(0.3736, 0.0074) == "0.3736 (a selection score; about 0.0074 of it is luck)"
    assert luck_in(0.3736, None) == "0.3736 (a selection score)"
