"""Studies with several objectives, and with collections on which a merge may lose only so much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from mergesearch import choose, load_study, open_store, run_study
from mergesearch.errors import StudyFileError
from mergesearch.search.ledger import score
from tests.tiny_studies import TinyStudy, make_beir, make_study, mergesearch

TWO = [
    {"name": "made", "folder": "collection", "objective": "target"},
    {"name": "other", "folder": "other", "objective": "others", "weight": 2.0},
]


@pytest.fixture
def two(tmp_path: Path) -> TinyStudy:
    study = make_study(tmp_path)
    make_beir(tmp_path / "other", seed=5)
    return study.change("evaluation", "collections", to=TWO)


def optuna_study(study: TinyStudy) -> optuna.Study:
    return optuna.load_study(study_name="tiny", storage=study.storage)


def ran(made: TinyStudy) -> dict[str, Any]:
    study = load_study(made.file)
    with open_store(study) as store:
        run_study(study, store)
        return {"choice": choose(study, store), "trials": store.trials(), "study": study}


@pytest.mark.parametrize(
    "strategy",
    [{"name": "grid"}, {"name": "evolution", "population_size": 4}, {"name": "embedding_surrogate"}, {"name": "tpe"}],
    ids=lambda s: str(s["name"]),
)
def test_optuna_sees_every_objective_and_the_same_front(two: TinyStudy, strategy: dict[str, Any]) -> None:
    two.change("search", "strategy", to=strategy).change("search", "trials", to=8)
    found = ran(two)
    theirs = optuna_study(two)
    assert [d.name for d in theirs.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert theirs.metric_names == ["ndcg@10 target", "ndcg@10 others"]
    assert len(theirs.trials) > 4
    for ours, theirs_ in zip(found["trials"], theirs.trials, strict=True):
        target, others = theirs_.values
        assert ours.value == pytest.approx((target + 2 * others) / 3)
        assert ours.user_attrs["objectives"] == {"target": target, "others": others}
    fronts = [{tuple(t.values) for t in theirs.best_trials}]
    fronts.append({tuple(p.objectives.values()) for p in found["choice"].front})
    assert fronts[0] == fronts[1]
    assert found["choice"].best_number in {p.number for p in found["choice"].front} | {found["choice"].source_number}


def test_evolution_keeps_what_is_best_in_one_objective_only(two: TinyStudy) -> None:
    """With one value the second generation descends from the highest means; with two from both ends of the front."""
    two.change("search", "strategy", to={"name": "evolution", "population_size": 4})
    two.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "step": 0.05}}).change(
        "search", "trials", to=14
    )
    several = ran(two)["trials"]
    single = [{**c, "objective": None} for c in TWO]
    two.change("study", to="single").change(
        "evaluation", "collections", to=[{k: v for k, v in c.items() if v} for c in single]
    )
    one = ran(two)["trials"]
    assert [t.params for t in one[:6]] == [t.params for t in several[:6]]
    assert [t.params for t in one] != [t.params for t in several]


def test_a_killed_study_with_objectives_proposes_the_same_again(two: TinyStudy) -> None:
    strategy = {"name": "evolution", "population_size": 4}
    two.change("search", "strategy", to=strategy).change("search", "trials", to=12)
    two.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "step": 0.05}})
    whole = [(t.params, t.value) for t in ran(two)["trials"]]
    two.change("study", to="parts")
    for budget in (5, 9, 12):
        parts = ran(two.change("search", "trials", to=budget))["trials"]
    assert [(t.params, t.value) for t in parts] == whole


def test_best_shows_the_front_and_export_takes_a_point_of_it(two: TinyStudy, tmp_path: Path) -> None:
    two.change("search", "strategy", to={"name": "grid"}).change("search", "trials", to=None)
    front = ran(two)["choice"].front
    shown = mergesearch("best", two.file)
    assert "Pareto front (selection scores)" in shown.out
    assert json.loads(mergesearch("best", "-f", "json", two.file).out)["front"][0]["number"] == front[0].number
    exported = mergesearch("export", two.file, "--trial", front[-1].number, "--out", tmp_path / "merged")
    assert exported.code == 0, exported.err
    assert mergesearch("status", two.file).code == 0
    theirs = optuna_study(two)
    kept = theirs._storage.get_study_system_attrs(theirs._study_id)
    assert any("pareto-front" in str(name) for name in kept), sorted(kept)


def test_what_loses_more_than_it_may_is_never_chosen(two: TinyStudy) -> None:
    two.change("search", "strategy", to={"name": "grid"}).change("search", "trials", to=None)
    two.change("merge", "template", to="domain")
    collections = [{"name": "made", "folder": "collection"}, {"name": "other", "folder": "other", "weight": 0.0}]
    free = ran(two.change("evaluation", "collections", to=collections))
    by_other = {t.number: t.user_attrs["scores"]["ndcg@10 other"] for t in free["trials"]}
    template = next(t for t in free["trials"] if t.user_attrs.get("source_alone") == "domain")
    highest = free["choice"].best_number
    assert by_other[highest] < by_other[template.number], "the example is to have something to guard against"

    collections[1]["may_lose"] = 0.0
    two.change("study", to="guarded").change("evaluation", "collections", to=collections)
    guarded = ran(two)
    assert guarded["trials"][0].user_attrs["source_alone"] == "domain"
    had = guarded["trials"][0].user_attrs["scores"]["ndcg@10 other"]
    broken = [t for t in guarded["trials"] if t.user_attrs["scores"]["ndcg@10 other"] < had]
    for t in guarded["trials"]:
        assert (t.user_attrs["excess"]["other"] > 0) == (t in broken)
        assert (score(t) == t.value) == (t not in broken)
    choice = guarded["choice"]
    assert choice.set_aside == len({t.user_attrs["recipe"] for t in broken}) > 0
    assert {choice.number, choice.best_number}.isdisjoint(t.number for t in broken)
    assert "more on a guarded collection" in mergesearch("best", two.file).out
    theirs = optuna.load_study(study_name="guarded", storage=two.storage)
    assert theirs.best_trial.number == choice.best_number


@pytest.mark.parametrize("strategy", ["embedding_surrogate", "tpe", "cmaes", "evolution", "gp"])
def test_strategies_keep_away_from_what_loses_too_much(two: TinyStudy, strategy: str) -> None:
    collections = [
        {"name": "made", "folder": "collection"},
        {"name": "other", "folder": "other", "weight": 0.0, "may_lose": 0.0},
    ]
    two.change("evaluation", "collections", to=collections)
    two.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "step": 0.1}})
    two.change("search", "strategy", to={"name": strategy}).change("search", "trials", to=9)
    found = ran(two)
    assert found["choice"].number not in {t.number for t in found["trials"] if t.user_attrs["excess"]["other"] > 0}


def test_problems_are_told_at_once(two: TinyStudy) -> None:
    two.change("evaluation", "collections", 1, "objective", to=None)
    two.change("evaluation", "collections", 0, "weight", to=0.0).change("search", "racing", to=True)
    with pytest.raises(StudyFileError) as error:
        load_study(two.file)
    text = str(error.value)
    for words in ("name an `objective` here as well", "have no weight", "leave `racing` out"):
        assert words in text


def test_other_objectives_or_guards_are_another_study(two: TinyStudy) -> None:
    two.change("search", "strategy", to={"name": "grid"}).change("search", "trials", to=3)
    ran(two)
    two.change("evaluation", "collections", 1, "may_lose", to=0.01)
    refused = mergesearch("run", two.file)
    assert refused.code != 0
    assert "may_lose" in refused.err


def test_other_guards_are_tried_without_evaluating_anything_again(two: TinyStudy) -> None:
    collections = [{k: v for k, v in c.items() if k != "objective"} for c in TWO]
    two.change("merge", "template", to="domain").change("evaluation", "collections", to=collections)
    two.change("search", "strategy", to={"name": "grid"}).change("search", "trials", to=None)
    free = ran(two)
    two.change("study", to="guarded").change("evaluation", "collections", to=[TWO[0], {**TWO[1], "may_lose": 0.0}])
    two.change("search", "start_from", to={"study": "tiny"})
    guarded = ran(two)
    assert len(guarded["trials"]) == len(free["trials"])
    assert all(t.user_attrs["tokens"] == 0 for t in guarded["trials"])
    assert guarded["choice"].set_aside > 0
    theirs = optuna.load_study(study_name="guarded", storage=two.storage)
    assert {p.number for p in guarded["choice"].front} <= {t.number for t in theirs.trials}
    assert {tuple(t.values) for t in theirs.best_trials} == {
        tuple(p.objectives.values()) for p in guarded["choice"].front
    }
