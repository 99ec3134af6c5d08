"""Guards are measured against the template alone, behind the study's first prompts, and nothing goes without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mergesearch import choose, load_study, open_store
from mergesearch.controller import Controller
from mergesearch.errors import StudyFileError
from mergesearch.evaluation.result import CollectionScores, TrialResult
from mergesearch.judging import NO_TEMPLATE
from mergesearch.results.choose import NothingScoredError
from mergesearch.workers.pool import Outcome, Task
from tests.controller_toys import Diary, ScriptedPool
from tests.starting_toys import start
from tests.tiny_studies import TinyStudy, make_study

PROMPTS = ["", "search query "]
IDS = ("q1", "q2", "q3")


@pytest.fixture
def guarded(tmp_path: Path) -> TinyStudy:
    study = make_study(tmp_path)
    study.change("merge", "coefficients", to={"alpha": {"values": [0.25, 0.5, 0.75], "tie": "groups"}})
    study.change("evaluation", "prompts", to={"query": {"values": PROMPTS}})
    study.change("search", to={"strategy": "grid", "enqueue": ["prompts"]})
    return study.change("evaluation", "collections", 0, "may_lose", to=0.1)


def by_prompt(task: Task, _attempt: int) -> Outcome:
    """The second prompt doubles every score; merges score less than sources."""
    alone = all(g.copy_from or 1.0 in g.coefficients["weight"].values() for g in task.recipe.groups)
    base = (0.4 if alone else 0.35) * (2 if task.recipe.prompts["made"]["query"] else 1)
    return Outcome(task, "", TrialResult((CollectionScores("made", "ndcg@10", IDS, base + np.zeros(3)),), {}, 10))


def test_without_the_template_behind_its_first_prompt_nothing_is_evaluated(guarded: TinyStudy) -> None:
    study = load_study(guarded.file)
    template = study.anchors()[0]

    def failing(task: Task, attempt: int) -> Outcome:
        if task.recipe == study.recipe_of(template.coefficients, template.prompts):
            return Outcome(task, "", failure="not today")
        return by_prompt(task, attempt)

    with open_store(study) as store:
        for times in range(1, 4):
            summary = Controller(study, store, ScriptedPool(script=failing), Diary()).run()
            assert summary.reason == NO_TEMPLATE
            assert [t.state.name for t in store.trials()] == ["FAIL"] * times  # once a run
        with pytest.raises(NothingScoredError):
            choose(study, store)
        Controller(study, store, ScriptedPool(script=by_prompt), Diary()).run()
        assert all("excess" in t.user_attrs for t in store.trials() if t.state.name == "COMPLETE")


def test_the_template_behind_another_prompt_is_no_measure(guarded: TinyStudy) -> None:
    """Whichever of them was recorded first: .7 is more than .4 − .1, though less than .8 − .1."""
    study = load_study(guarded.file)
    with open_store(study) as store:
        Controller(study, store, ScriptedPool(script=by_prompt), Diary()).run()
        kept = {t.number for t in store.trials() if t.user_attrs["excess"]["made"] <= 0}
        scored = store.scored()
        backwards = dict(sorted(scored.items(), reverse=True))
        trials = store.trials()
        assert kept == {t.number for t in trials}
        assert choose(study, store, backwards).set_aside == 0
        only = {n: found for n, found in scored.items() if n != 0}
        with pytest.raises(NothingScoredError, match="alone has no score"):
            choose(study, store, only)


def test_what_cannot_be_judged_does_not_come_over(guarded: TinyStudy) -> None:
    """The other study never scored the template alone: guards would let pass whatever was scored there."""
    content = guarded.content()
    del content["evaluation"]["collections"][0]["may_lose"], content["evaluation"]["prompts"]
    content["search"]["enqueue"] = []
    guarded.write({**content, "study": "free"})
    free = load_study(guarded.file)

    def plain(task: Task, attempt: int) -> Outcome:
        return by_prompt(replace(task, recipe=replace(task.recipe, prompts={"made": {"query": ""}})), attempt)

    def unprompted(task: Task, attempt: int) -> Outcome:
        return replace(plain(task, attempt), task=task)

    with open_store(free) as store:
        Controller(free, store, ScriptedPool(script=unprompted), Diary()).run()
    content["evaluation"]["collections"][0]["may_lose"] = 0.01
    guarded.write({**content, "search": {**content["search"], "start_from": "free"}})
    study = load_study(guarded.file)
    with open_store(study) as store:
        with pytest.raises(StudyFileError, match=r"'free' has not scored retriever alone.*scores: again"):
            start(study, store)
        assert store.trials() == []
