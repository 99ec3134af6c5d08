"""Reports of studies that search prompts: a source alone behind another prompt is a source alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mergesearch import load_study, open_store
from mergesearch.controller import Controller
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.results.report.stability import stability
from mergesearch.results.view import read_view
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Diary, ScriptedPool
from tests.tiny_studies import make_study

IDS = ("q1", "q2", "q3", "q4")


def scripted(task: Task, _attempt: int) -> Outcome:
    """The second prompt helps all alike; behind it merges win by what one query brings."""
    alone = all(g.copy_from or 1.0 in g.coefficients["weight"].values() for g in task.recipe.groups)
    scores = np.array([0.3, 0.4, 0.5, 0.4] if alone else [0.5, 0.4, 0.3, 0.41])
    scores = scores + (0.3 if task.recipe.prompts["made"]["query"] else 0.0)
    return Outcome(task, "", TrialResult((CollectionScores("made", "ndcg@10", IDS, scores),), {}, 10))


def test_resamples_choose_among_sources_behind_every_prompt(tmp_path: Path) -> None:
    made = make_study(tmp_path)
    made.change("merge", "coefficients", to={"alpha": {"values": [0.25, 0.5, 0.75], "tie": "groups"}})
    made.change("evaluation", "prompts", to={"query": {"values": ["", "search query "]}})
    made.change("search", to={"strategy": "grid", "enqueue": ["prompts"]})
    study = load_study(made.file)
    with open_store(study) as store:
        Controller(study, store, ScriptedPool(script=scripted), Diary()).run()
        view = read_view(study, store)
    assert view.choice is not None
    assert view.chosen is not None
    assert view.choice.verdict == "source"
    assert view.chosen.recipe is not None
    assert view.chosen.recipe.prompts["made"]["query"]
    chosen = {c.trial.number: c.chosen for c in stability(view) if c.chosen}
    assert chosen[view.choice.number] > 0.2
    assert view.sources["retriever"].number not in chosen  # behind the first prompt
