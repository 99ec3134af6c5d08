"""A study as people look at it holds what its database does."""

from __future__ import annotations

from mergesearch import choose
from mergesearch.results.view import StudyView
from mergesearch.storage.store import StudyStore

pytest_plugins = ["tests.grid_fixtures"]


def test_every_trial_is_there_with_its_scores(view: StudyView, store: StudyStore) -> None:
    assert [(t.number, t.value) for t in view.trials] == [(t.number, t.value) for t in store.trials()]
    for trial in view.scored:
        assert trial.result is not None
        assert trial.result.value == trial.value
        assert trial.recipe == store.recipe(trial.number)


def test_sources_and_average_are_found_by_their_weights(view: StudyView) -> None:
    named = {name: trial.label for name, trial in view.sources.items()}
    assert named == {"retriever": "retriever alone", "domain": "domain's layers"}
    assert view.uniform is not None
    assert view.uniform.label == "uniform average"


def test_the_chosen_trial_is_what_choose_says(view: StudyView, store: StudyStore) -> None:
    assert view.choice == choose(view.study, store)
    assert view.chosen is not None
    assert view.highest is not None
    assert (view.chosen.number, view.highest.number) == (view.choice.number, view.choice.best_number)
    values = [best for _, best in view.best_so_far()]
    assert values == sorted(values)
    assert values[-1] == view.choice.best_value
