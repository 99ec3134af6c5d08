"""What any program may do to a study with Optuna, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from mergesearch.storage.trials import Trials

EVERY_KIND: dict[str, BaseDistribution] = {
    "z": FloatDistribution(0.1, 10, log=True),
    "a": FloatDistribution(0, 1, step=0.25),
    "n": IntDistribution(1, 9, step=2),
    "c": CategoricalDistribution((None, "ä", 2.5)),
}


def events(storage: optuna.storages.RDBStorage, study_id: int) -> Iterator[str]:
    """Do one thing after the other; after each it says what it was."""
    study = optuna.load_study(study_name=storage.get_study_name_from_id(study_id), storage=storage)
    yield "nothing"
    first = study.ask(EVERY_KIND)
    yield "began a trial"
    second, third = study.ask(), study.ask(EVERY_KIND)
    study.enqueue_trial({"a": 0.5}, user_attrs={"note": {"deep": [1, None]}})
    yield "began two more, queued one"
    third.report(0.25, 3)
    third.report(math.inf, 1)
    third.set_user_attr("ü", 'quo"ted')
    study.tell(third, state=TrialState.PRUNED)
    yield "stopped the newest"
    study.tell(second, -math.inf)
    study.tell(first, state=TrialState.FAIL)
    yield "ended the others"
    queued = study.ask(EVERY_KIND)
    study.tell(queued, 0.1 + 0.2)
    yield "ended the queued one"
    template = create_trial(params={"a": 0.75}, distributions={"a": EVERY_KIND["a"]}, value=1.0, user_attrs={"x": 1})
    study.add_trials([template] * 7)
    yield "added seven"


def check_reading(storage: optuna.storages.RDBStorage, study_id: int) -> None:
    """Whether trials are followed or read at once, they are what Optuna itself reads, after every event."""
    followed = Trials(storage.engine, study_id)
    before: list[optuna.trial.FrozenTrial] = []
    for event in events(storage, study_id):
        expected = storage.get_all_trials(study_id)
        seen = followed.read()
        assert seen == expected, event
        assert [list(t.params) for t in seen] == [list(t.params) for t in expected]
        assert Trials(storage.engine, study_id).read() == expected
        assert all(a is b for a, b in zip(before, seen, strict=False) if a.state == b.state), "read again"
        before = seen
    assert len(before) == 11
