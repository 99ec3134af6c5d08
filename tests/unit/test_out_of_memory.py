"""Memory that runs out: batches are split, what was kept for later makes room, and no recipe is blamed for it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mergesearch.evaluation.memory import is_out_of_memory
from mergesearch.evaluation.result import TrialResult
from mergesearch.evaluation.search import TopK
from mergesearch.resolving import load_study
from mergesearch.workers.evaluator import GAVE_WAY, TrialEvaluator, attempt
from mergesearch.workers.pool import Outcome, Task
from tests.storage_helpers import begin, open_store, result
from tests.tiny_studies import TinyStudy, make_study, write_lines

MORE_THAN_THERE_IS = 1 << 55
TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


def too_much(*_: object, **__: object) -> torch.Tensor:
    return torch.empty(MORE_THAN_THERE_IS)


def test_failed_allocations_are_told_from_other_failures() -> None:
    with pytest.raises(RuntimeError) as caught:
        too_much()
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


@pytest.mark.slow
def test_a_process_without_memory_to_spare(tmp_path: Path) -> None:
    """Torch really fails to allocate: smaller batches give the same scores, and the next trial starts with them."""
    tiny = make_study(tmp_path)
    corpus = tmp_path / "collection" / "corpus.jsonl"
    documents = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    # One batch of 1,000 texts of 64 tokens: a single layer's attention is 66 MB.
    more = [{"_id": f"long{i}", "title": "", "text": f"{i % 97} {'search model of the ' * 16}"} for i in range(970)]
    write_lines(corpus, [*documents, *more])
    tiny.change("evaluation", "batch_tokens", to=1 << 16).change("evaluation", "attention", to="eager")
    tiny.change("evaluation", "metric", to="ndcg@1000")
    command = [sys.executable, "-m", "tests.out_of_memory", str(tiny.file), "12"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    first, second = found["short"]
    assert first["out_of_memory"] > second["out_of_memory"]
    for trial in (first, second):
        assert any("was split" in note for note in trial["notes"])
    assert found["ample"]["out_of_memory"] == 0
    assert first["value"] == pytest.approx(found["ample"]["value"], abs=TOLERANCE)
    assert first["value"] > 0


def test_a_merge_without_memory_fails_and_nobody_is_to_blame(tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(tiny.file)
    evaluator = TrialEvaluator(study.evaluator_spec())
    task = Task(0, study.recipe({d.name: 0.5 for d in study.space.dimensions}))
    with monkeypatch.context() as short:
        short.setattr(evaluator.merger, "_interpolate", too_much)
        failed = attempt(evaluator, task, "w")
    assert failed.failure is not None
    assert "the memory of cpu was full while merging" in failed.failure
    assert "`workers.residency: auto`" in failed.failure
    assert not failed.recipe_at_fault
    expected = TrialEvaluator(study.evaluator_spec()).evaluate(task.recipe)
    assert value(attempt(evaluator, task, "w")) == expected.value  # what was half written is written again


def test_a_text_that_does_not_fit_is_not_the_recipes_fault(tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(tiny.file)
    evaluator = TrialEvaluator(study.evaluator_spec())
    monkeypatch.setattr(evaluator.model.model, "forward", too_much)
    failed = attempt(evaluator, Task(0, study.recipe({d.name: 0.5 for d in study.space.dimensions})), "w")
    assert failed.failure is not None
    assert "a single text of" in failed.failure
    assert not failed.recipe_at_fault


def test_hidden_states_make_room_for_the_search(tiny: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.change("search", "strategy", to={"name": "grid"})
    study = load_study(tiny.file)
    evaluator = TrialEvaluator(replace(study.evaluator_spec(), racing=None))
    reuse = evaluator.model.reuse
    assert reuse is not None
    recipes = [study.recipe(point) for point in study.space.grid()]
    expected = [evaluator.evaluate(recipe).value for recipe in recipes[:2]]
    assert sum(reuse.cache.n_bytes) > 0
    found = TopK.result

    def crowded(search: TopK) -> Any:
        return too_much() if sum(reuse.cache.n_bytes) else found(search)

    monkeypatch.setattr(TopK, "result", crowded)
    outcome = attempt(evaluator, Task(1, recipes[1]), "w")
    assert value(outcome) == expected[1]
    assert isinstance(outcome.result, TrialResult)
    assert (outcome.result.out_of_memory, outcome.result.notes) == (1, (GAVE_WAY,))
    assert reuse.cache.n_bytes == (0, 0)
    again = attempt(evaluator, Task(0, recipes[0]), "w").result
    assert isinstance(again, TrialResult)
    assert (again.value, again.out_of_memory) == (expected[0], 0)


def test_the_trial_says_that_memory_ran_out(tmp_path: Path) -> None:
    with open_store(f"sqlite:///{tmp_path}/study.db") as store:
        store.finish(begin(store, 0.1, "a"), replace(result(1), out_of_memory=2, notes=("a batch was split",)))
        store.finish(begin(store, 0.2, "b"), result(2))
        attributes = [trial.user_attrs for trial in store.trials()]
    assert (attributes[0]["out_of_memory"], attributes[0]["notes"]) == (2, "a batch was split")
    assert "out_of_memory" not in attributes[1]


def value(outcome: Outcome) -> float:
    assert isinstance(outcome.result, TrialResult), outcome.failure
    return outcome.result.value
