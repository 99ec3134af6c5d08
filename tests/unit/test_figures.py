"""Figures of studies: small, of every kind of study, and what they show is what the study has."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergesearch import load_study
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.recipe import MergeRecipe
from mergesearch.results.figures import FIGURES
from mergesearch.results.figures.drawing import MOST_BYTES, thinned
from mergesearch.results.view import StudyView, TrialView
from mergesearch.search.importance import importances
from mergesearch.study import Study
from tests.tiny_studies import TinyStudy, make_beir, make_study

pytest_plugins = ["tests.grid_fixtures"]

START = datetime(2026, 1, 1, tzinfo=UTC)


def figure(name: str, view: StudyView) -> dict[str, Any]:
    """As it is kept."""
    drawn = FIGURES[name].draw(view)
    assert drawn is not None
    text = drawn.to_json()
    assert len(text) < MOST_BYTES
    kept: dict[str, Any] = json.loads(text)
    return kept


def made_up(
    study: Study, view: StudyView, trials: int, change: Callable[[int], dict[str, Any]] = lambda _: {}
) -> StudyView:
    """A study with sources, their average and random points of its space, as if it had been run."""
    rng = np.random.default_rng(0)
    recipes: list[tuple[str, Mapping[str, float], MergeRecipe]] = [
        (a.name, a.params or {}, study.recipe_of(a.coefficients)) for a in study.anchors()
    ]
    while len(recipes) < trials:
        params = {d.name: d.from_unit(rng.random()) for d in study.space.dimensions}
        recipes.append((study.space.label(params), params, study.recipe(params)))
    made = []
    for n, (label, params, recipe) in enumerate(recipes[:trials]):
        scores = tuple(
            CollectionScores(c.name, "ndcg@10", tuple(c.query_ids), rng.random(len(c.query_ids)))
            for c in study.collections
        )
        result = TrialResult(scores, {"encode": 1.0}, 1000)
        ended = START + timedelta(seconds=60 * n + 50)
        trial = TrialView(
            n, "complete", label, params, result.value, None, None, None, recipe.fingerprint, recipe, result, False,
            1000, {"encode": 1.0}, 1.0, START + timedelta(seconds=60 * n), ended, None,
        )  # fmt: skip
        made.append(TrialView(**{**vars(trial), **change(n)}))
    return StudyView(study, view.record, tuple(made), None, (), ())


def one(m: TinyStudy) -> None:
    m.change("merge", "groups", to={"segments": 1}).change("merge", "coefficients", "alpha", to={"low": 0, "high": 1})


def layers(m: TinyStudy) -> None:
    m.change("merge", "groups", to={"segments": 12})
    m.change("merge", "coefficients", to={"weight": {"low": 0.01, "high": 1, "log": True}})


def categorical(m: TinyStudy) -> None:
    m.change("merge", "method", to="passthrough")
    m.change("merge", "coefficients", to={"source": {"values": ["retriever", "domain"]}})


def collections(m: TinyStudy) -> None:
    names = [f"collection {k} of a name that goes on" for k in range(12)]
    for k, name in enumerate(names):
        make_beir(m.folder / f"c{k}", seed=k, n_queries=40)
        names[k] = name
    entries = [{"name": n, "folder": f"c{k}", "objective": "ab"[k % 2]} for k, n in enumerate(names)]
    m.change("evaluation", "collections", to=entries)


KINDS = {"one": one, "layers": layers, "categorical": categorical, "collections": collections}


@pytest.mark.parametrize("trials", [1, 5, 600])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_study_has_small_figures(kind: str, trials: int, view: StudyView, tmp_path: Path) -> None:
    tiny = make_study(tmp_path, n_layers=12 if kind == "layers" else 2)
    KINDS[kind](tiny)
    study = load_study(tiny.file)

    def change(n: int) -> dict[str, Any]:
        if n % 7 == 3:
            return {"state": "pruned", "value": None, "estimate": 0.3, "label": "ü" * 300}
        if n % 7 == 4:
            return {"state": "fail", "value": None, "recipe": None, "result": None, "failure": "it broke"}
        return {"predicted": 0.5, "deviation": 0.1} if n % 7 == 5 else {}

    made = made_up(study, view, trials, change)
    drawn = {name: f.draw(made) for name, f in FIGURES.items()}
    found = {name: json.loads(f.to_json()) for name, f in drawn.items() if f is not None}
    assert max(len(json.dumps(f)) for f in found.values()) < MOST_BYTES
    assert {"best-so-far", "best-so-far-by-time"} <= set(found)
    if trials > 5:
        assert set(found) == {name for name in FIGURES if name != "pareto-front" or kind == "collections"}


def test_a_study_without_trials_has_no_figures(view: StudyView) -> None:
    empty = made_up(view.study, view, 0)
    assert not any(f.draw(empty) for f in FIGURES.values())


@pytest.mark.parametrize("name", FIGURES)
def test_names_are_html_ids_and_axes_are_named(name: str, view: StudyView, tmp_path: Path) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]*", name)
    assert FIGURES[name].shows.endswith(".")
    tiny = make_study(tmp_path)
    collections(tiny)
    study = load_study(tiny.file) if name == "pareto-front" else view.study
    made = made_up(study, view, 20, lambda n: {"predicted": 0.5, "deviation": 0.1} if n > 4 else {})
    layout = figure(name, made)["layout"]
    assert layout["title"]["text"]
    axes = [layout[key] for key in layout if re.fullmatch(r"[xy]axis\d*", key)]
    assert all("title" in axis or axis.get("matches") for axis in axes)
    assert "template" not in layout or len(json.dumps(layout["template"])) < 100


@pytest.mark.parametrize("name", ["best-so-far", "best-so-far-by-time"])
def test_best_so_far_ends_at_the_highest_score(name: str, view: StudyView) -> None:
    points, best, *lines = figure(name, view)["data"]
    assert len(points["y"]) == len([t for t in view.trials if t.value is not None])
    assert best["y"] == sorted(best["y"])
    assert view.choice is not None
    assert best["y"][-1] == pytest.approx(view.choice.best_value, abs=1e-5)
    assert best["x"][-1] == max(points["x"])
    assert {line["name"].rpartition(" ")[0] for line in lines} == {"retriever alone", "domain alone", "uniform average"}


def test_tokens_count_of_all_trials_and_pauses_do_not(view: StudyView) -> None:
    def change(n: int) -> dict[str, Any]:
        late = timedelta(days=3 * (n >= 10))
        times = {"started": START + late + timedelta(minutes=n), "ended": START + late + timedelta(minutes=n + 0.5)}
        return {**times, "state": "fail", "value": None} if n in (5, 6) else times

    made = made_up(view.study, view, 20, change)
    tokens, time = (figure(name, made)["data"][0]["x"] for name in ("best-so-far", "best-so-far-by-time"))
    assert tokens[-1] == 20 * 1000
    assert len(tokens) == 18
    # Ten minutes, less the half minute after the last trial, before and after a pause of which nothing is left.
    assert time[-1] == pytest.approx(19.0, abs=0.6)


def test_a_grid_is_a_heat_map_of_its_scores(view: StudyView) -> None:
    heat, star = figure("measured-landscape", view)["data"]
    assert heat["type"] == "heatmap"
    layout = figure("measured-landscape", view)["layout"]
    x, y = layout["xaxis"]["title"]["text"], layout["yaxis"]["title"]["text"]
    values = {(t.params[x], t.params[y]): t.value for t in view.trials}
    assert len(values) == 9
    for b, row in zip(heat["y"], heat["z"], strict=True):
        for a, value in zip(heat["x"], row, strict=True):
            assert value == pytest.approx(values[a, b], abs=1e-5)
    assert values[star["x"][0], star["y"][0]] == max(v for v in values.values() if v is not None)


def test_wins_ties_and_losses_are_counted(view: StudyView) -> None:
    made = made_up(view.study, view, 20)
    (line,) = figure("wins-and-losses", made)["data"]
    source = made.sources["retriever"].result
    best = max((t for t in made.scored if t.number > 1), key=lambda t: t.value or 0.0)
    assert source is not None
    assert best.result is not None
    gains = best.result.collections[0].scores - source.collections[0].scores
    assert line["y"] == pytest.approx(sorted(gains, reverse=True), abs=1e-4)
    assert line["name"] == f"made: {sum(gains > 0)} won, {sum(gains == 0)} tied, {sum(gains < 0)} lost"


def test_coefficients_are_those_of_the_best_trials(view: StudyView) -> None:
    best = view.highest
    assert best is not None
    assert best.recipe is not None
    lines = {line["name"]: line for line in figure("coefficients", view)["data"]}
    line = lines[f"trial {best.number}: {best.value:.4f}"]
    merged = {g.name: g.coefficients["weight"] for g in best.recipe.groups if g.coefficients}
    assert line["x"] == list(merged)
    # Weights that add up to 1 are shown of one source: the template's is what is left over.
    assert line["y"] == [weights["domain"] for weights in merged.values()]  # type: ignore[index, call-overload]


def test_importance_is_that_of_what_scores_depend_on(view: StudyView) -> None:
    space = view.study.space
    first, second = (d.name for d in space.free)
    rng = np.random.default_rng(0)
    points = [{first: a, second: b} for a, b in rng.choice([0.0, 0.5, 1.0], (60, 2)).tolist()]
    found = importances(space, points, [p[second] + 0.01 * p[first] for p in points])
    assert list(found) == [second, first]
    assert sum(found.values()) == pytest.approx(1)
    assert found[second] > 0.9
    assert importances(space, points, [0.5] * 60) == {}
    assert importances(space, points[:2], [0.1, 0.2]) == {}


def test_thinning_keeps_the_ends() -> None:
    assert thinned(range(5), 5) == [0, 1, 2, 3, 4]
    few = thinned(range(1000), 7)
    assert (few[0], few[-1], len(few)) == (0, 999, 7)
