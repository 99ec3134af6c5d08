"""The choice rule: properties of `pick` on made-up scores, and distances of recipes to their sources."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergesearch.evaluation.result import CollectionScores
from mergesearch.recipe import GroupRecipe, MergeRecipe
from mergesearch.resolving import load_study
from mergesearch.results.choose import Candidate, Choice, paired_standard_error, pick
from mergesearch.results.distance import Distances
from mergesearch.study import Study
from tests.tiny_studies import make_study

if TYPE_CHECKING:
    from collections.abc import Sequence


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


def standard_error(a: Candidate, b: Candidate) -> float:
    """The textbook formula, written out: the error of a weighted sum of independent means of differences."""
    total = sum(c.weight for c in a.scores)
    square = 0.0
    for mine, theirs in zip(a.scores, b.scores, strict=True):
        d = mine.scores - theirs.scores
        n = len(d)
        if n > 1:
            square += (mine.weight / total) ** 2 * sum((x - d.mean()) ** 2 for x in d) / (n - 1) / n
    return math.sqrt(square)


def by_number(candidates: Sequence[Candidate], number: int) -> Candidate:
    return next(c for c in candidates if c.number == number)


@given(studies())
def test_the_choice_is_never_more_than_one_standard_error_below_some_highest_trial(trials: list[Candidate]) -> None:
    choice = pick(trials)
    chosen, highest = by_number(trials, choice.number), max(t.value for t in trials)
    errors = [standard_error(t, chosen) for t in trials if t.value == highest]
    assert highest - choice.value <= max(errors) + 1e-12
    assert choice.best_value == highest


@given(studies())
def test_no_merge_that_is_as_near_scores_more_and_is_within_the_error(trials: list[Candidate]) -> None:
    choice = pick(trials)
    chosen = by_number(trials, choice.number)
    # Every trial has an error of its own: a steadier one may score more than the chosen and yet lie outside its error.
    reference = min(trials, key=lambda t: (-t.value, t.distance, t.fingerprint))
    within = [t for t in trials if reference.value - t.value < standard_error(reference, t) - 1e-12]
    assert not [t for t in within if t.value > chosen.value and t.distance <= chosen.distance]


@given(studies())
def test_a_source_that_scores_highest_is_chosen(trials: list[Candidate]) -> None:
    value = max(t.value for t in trials)
    source = replace(trials[0], value=value + 1e-9, distance=0.0, number=99, label="retriever alone")
    assert pick([*trials, source]).number == 99


@given(studies(), st.randoms(use_true_random=False))
def test_the_order_and_numbers_of_trials_do_not_matter(trials: list[Candidate], random: Any) -> None:
    numbers = [t.number for t in trials]
    random.shuffle(numbers)
    renumbered = [replace(t, number=n) for t, n in zip(trials, numbers, strict=True)]
    random.shuffle(renumbered)

    def recipe(of: Sequence[Candidate], choice: Choice) -> str:
        return by_number(of, choice.number).fingerprint

    assert recipe(trials, pick(trials)) == recipe(renumbered, pick(renumbered))


@given(studies(), st.floats(0.1, 10))
def test_scaling_all_collection_weights_changes_nothing(trials: list[Candidate], factor: float) -> None:
    scaled = [replace(t, scores=tuple(replace(c, weight=c.weight * factor) for c in t.scores)) for t in trials]
    for a, b in zip(trials, scaled, strict=True):
        assert paired_standard_error(trials[0].scores, a.scores) == pytest.approx(
            paired_standard_error(scaled[0].scores, b.scores)
        )


def test_the_nearer_of_two_merges_within_one_standard_error_is_chosen() -> None:
    # Differences .3, -.1, .2, -.2: mean .05, standard deviation .2380, standard error .1190.
    far = candidate(0, [collection([0.8, 0.4, 0.7, 0.3])], 0.5)
    near = candidate(1, [collection([0.5, 0.5, 0.5, 0.5])], 0.1)
    choice = pick([far, near])
    assert (choice.number, choice.best_number) == (1, 0)
    assert choice.standard_error == pytest.approx(0.238048 / 2, abs=1e-6)
    assert "within one standard error (0.1190)" in choice.describe()


def test_a_small_but_steady_difference_is_more_than_one_standard_error() -> None:
    # The plain standard error of either would be .2; the paired one is 0, for every query gains the same.
    far = candidate(0, [collection([0.1, 0.5, 0.9])], 0.5)
    near = candidate(1, [collection([0.09, 0.49, 0.89])], 0.1)
    assert pick([far, near]).number == 0


def test_a_collection_of_one_query_does_not_make_everything_equal() -> None:
    assert paired_standard_error([collection([1.0])], [collection([0.0])]) == 0


def test_of_equal_scores_the_description_names_the_reason() -> None:
    same = [candidate(0, [collection([0.5, 0.5])], 0.5), candidate(1, [collection([0.5, 0.5])], 0.1)]
    choice = pick(same)
    assert (choice.number, choice.best_number) == (1, 0)
    assert "of equal scores the merge nearer to retriever is preferred" in choice.describe()


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return load_study(make_study(tmp_path_factory.mktemp("linear")).file)


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
