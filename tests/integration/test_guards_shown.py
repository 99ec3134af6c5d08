"""What lost more than it may on a guarded collection is nowhere shown as the best of its study."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mergesearch import choose, load_study, open_store, starting
from mergesearch.controller import Controller
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.results.figures import coefficients, landscape
from mergesearch.results.notes import trial_notes
from mergesearch.results.report.ablation import ablations
from mergesearch.results.report.costs import strategies
from mergesearch.results.report.page import render_report
from mergesearch.results.report.stability import stability
from mergesearch.results.report.write import view_of
from mergesearch.results.status import read_status
from mergesearch.results.view import StudyView, read_view
from mergesearch.results.watch import Watch
from mergesearch.storage.listing import list_studies
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Diary, ScriptedPool
from tests.starting_toys import start
from tests.tiny_studies import TinyStudy, make_beir, make_study

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
WHOLE = 0.25
"""Beyond this much of the domain model the guarded collection suffers."""


@pytest.fixture
def guarded(tmp_path: Path) -> TinyStudy:
    """A study whose dev score only rises from the template to the domain model."""
    study = make_study(tmp_path)
    make_beir(tmp_path / "other", seed=5)
    collections = [
        {"name": "made", "folder": "collection"},
        {"name": "other", "folder": "other", "weight": 0.0, "may_lose": 0.05},
    ]
    study.change("merge", "coefficients", to={"alpha": {"values": list(ALPHAS), "tie": "groups"}})
    study.change("search", to={"strategy": "grid"})
    return study.change("evaluation", "collections", to=collections)


def rising(task: Task, attempt: int) -> Outcome:
    """Higher with more of the domain model on one collection; and lower, from WHOLE on, on the other."""
    weights = [g.coefficients["weight"] for g in task.recipe.groups if g.copy_from is None]
    domain = float(np.mean([w["domain"] for w in weights if isinstance(w, dict)]))
    noise = np.linspace(-0.1, 0.1, 8)
    ids = tuple(f"dev{i}" for i in range(8))
    found = (
        CollectionScores("made", "ndcg@10", ids, 0.3 + 0.4 * domain + noise, 1.0),
        CollectionScores("other", "ndcg@10", ids, 0.6 - 0.3 * max(0.0, domain - WHOLE) + noise, 0.0),
    )
    return Outcome(task, result=TrialResult(found, {"encode": 1.0}, 10), worker="")


def test_nothing_shows_a_merge_as_best_that_lost_too_much(guarded: TinyStudy) -> None:
    study = load_study(guarded.file)
    with open_store(study) as store:
        Controller(study, store, ScriptedPool(script=rising), Diary()).run()
        trials = store.trials()
        broken = {t.number for t in trials if t.user_attrs["excess"]["other"] > 0}
        choice = choose(study, store)
        best = choice.best_number
        assert max(trials, key=lambda t: t.value or 0.0).number in broken
        assert best not in broken

        status, now = read_status(store), Watch(store).read()
        assert now.best is not None
        assert (status.best, now.best.number) == (best, best)
        assert status.best_optimism == pytest.approx(choice.best_optimism)
        assert now.luck == pytest.approx(choice.best_optimism)
        assert [s.best_value for s in list_studies(guarded.storage)] == [choice.best_value]
        check_view(read_view(study, store), broken, best)

        shutil.rmtree(guarded.folder / "domain")
        view, missing = view_of(study.parsed, store)
        assert missing
        assert view.choice is not None
        assert (view.choice.number, view.choice.set_aside) == (choice.number, len(broken))
        assert render_report(view, (), why=missing).count("(set aside)") == len(broken)


def check_view(view: StudyView, broken: set[int], best: int) -> None:
    assert {t.number for t in view.trials if not t.kept} == broken
    assert {t.number for t, _ in view.best_so_far()}.isdisjoint(broken)
    assert "highest dev score" in trial_notes(view)[best]
    assert set(trial_notes(view)).isdisjoint(broken)
    assert {c.trial.number for c in stability(view)}.isdisjoint(broken)
    assert {s.best.number for s in strategies(view) if s.best is not None}.isdisjoint(broken)
    for found in ablations(view):
        assert broken.isdisjoint(t.number for t in (found.beside, found.without) if t is not None)
    shown = coefficients.coefficients(view)
    assert shown is not None
    assert {trace.name for trace in shown.data}.isdisjoint(
        {f"trial {t.number}: {t.value:.4f}" for t in view.trials if not t.kept}
    )
    summit = landscape.landscape(view)
    assert summit is not None
    assert any(trace.name is not None and f"trial {best}" in trace.name for trace in summit.data)


def test_the_best_that_is_evaluated_again_is_none_of_those(guarded: TinyStudy) -> None:
    first = load_study(guarded.file)
    with open_store(first) as store:
        Controller(first, store, ScriptedPool(script=rising), Diary()).run()
    begun = {"study": "tiny", "scores": "again", "best": 1}
    again = guarded.change("study", to="again").change("search", "start_from", to=begun)
    study = load_study(again.file)
    with open_store(study) as store:
        start(study, store)
        assert starting.with_inherited(study, store).inherited == ({"alpha": 0.75},)  # a quarter of the domain model
