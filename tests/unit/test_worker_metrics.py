"""What workers report is what is declared, and adds up to what trials cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from mergesearch.resolving import load_study
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator, attempt
from mergesearch.workers.metrics import METRICS, Reading, readings
from mergesearch.workers.pool import Outcome, Task
from tests.tiny_studies import make_study

DECLARED = {metric.name: metric for metric in METRICS}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = make_study(tmp_path_factory.mktemp("study"))
    return load_study(made.change("search", to={"strategy": "grid"}).file)


def read(outcome: Outcome, *, hits: int = 0, misses: int = 0) -> list[Reading]:
    """Of a task of two seconds."""
    found = list(readings(outcome, "tiny", seconds=2.0, hits=hits, misses=misses))
    for reading in found:
        assert set(reading.tags) == set(DECLARED[reading.name].tags)
        assert reading.value >= 0
    return found


def total(found: Iterable[Reading], name: str, **tags: str) -> float:
    return sum(r.value for r in found if r.name == name and tags.items() <= r.tags.items())


def test_names_and_labels_are_prometheus_words_and_no_name_is_used_twice() -> None:
    assert len(DECLARED) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"mergesearch_[a-z]+(_[a-z]+)*", metric.name)
        assert all(re.fullmatch(r"[a-z]+", tag) for tag in metric.tags)
        assert metric.tags[0] == "study"
        assert metric.exported.startswith(f"ray_{metric.name}")


def test_readings_of_trials_add_up_to_their_results(study: Study) -> None:
    evaluator = TrialEvaluator(study.evaluator_spec())
    assert evaluator.spec.study == "tiny"
    reuse = evaluator.model.reuse
    assert reuse is not None
    batches = sum(len(plan.batches) for c in evaluator.pipeline.collections for plan in (c.queries, c.documents))
    found: list[Reading] = []
    outcomes = []
    for number, point in enumerate(list(study.space.grid())[:4]):
        before = reuse.hits + reuse.misses
        outcomes.append(attempt(evaluator, Task(number, study.recipe(point)), "ray-7"))
        assert reuse.hits + reuse.misses - before == batches
        found += read(outcomes[-1], hits=reuse.hits, misses=reuse.misses)
    assert reuse.hits >= batches  # neighbours in the grid agree below
    results = [o.result for o in outcomes]
    for name, attribute in (("mergesearch_tokens", "tokens"), ("mergesearch_layer_tokens", "layer_tokens")):
        assert total(found, name) == sum(getattr(result, attribute) for result in results) > 0
    assert total(found, "mergesearch_trials", outcome="complete") == 4
    assert total(found, "mergesearch_trial_seconds") == 8
    phases = Counter(r.tags["phase"] for r in found if r.name == "mergesearch_phase_seconds")
    assert set(phases) == {"merge", "encode", "search", "score"}
    rates = [r for r in found if r.name == "mergesearch_tokens_per_second"]
    assert [r.tags["worker"] for r in rates] == ["ray-7"] * 4
    assert [r.value for r in rates] == [r.tokens / r.seconds["encode"] for r in results]


def test_a_trial_that_brings_no_scores_is_counted_as_what_it_is(study: Study) -> None:
    task = Task(0, study.recipe(next(iter(study.space.grid()))))
    failed = read(Outcome(task, "ray-0", failure="the disk is gone"))
    assert total(failed, "mergesearch_trials", outcome="failed") == total(failed, "mergesearch_trials") == 1
    evaluator = TrialEvaluator(study.evaluator_spec())
    whole = attempt(evaluator, task, "ray-0")
    stopped = read(replace(whole, result=replace(whole.result, stopped=True, out_of_memory=3)))
    assert total(stopped, "mergesearch_trials", outcome="pruned") == total(stopped, "mergesearch_trials") == 1
    assert total(stopped, "mergesearch_out_of_memory") == 3
