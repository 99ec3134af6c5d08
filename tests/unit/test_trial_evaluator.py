"""What a worker builds from its spec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mergesearch.errors import CollectionError
from mergesearch.study import load_study
from mergesearch.workers import evaluator
from mergesearch.workers.evaluator import TrialEvaluator, default_threads
from tests.tiny_studies import TinyStudy, make_study


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


def test_tokens_of_large_corpora_are_on_disk_and_leave_nothing_behind(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(tiny.file)
    recipe = study.recipe(next(study.space.grid()))
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "cache"))
    small = TrialEvaluator(study.evaluator_spec())
    monkeypatch.setattr(evaluator, "LARGE_CORPUS", 29)
    large = TrialEvaluator(study.evaluator_spec())
    mapped = [isinstance(e.retrieval.collections[0].documents.ids, np.memmap) for e in (small, large)]
    assert mapped == [False, True]
    assert list((tmp_path / "cache").iterdir()) == []
    assert large.evaluate(recipe).value == small.evaluate(recipe).value


def test_a_large_corpus_without_a_place_for_its_tokens_says_so(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    spec = load_study(tiny.file).evaluator_spec()
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(evaluator, "LARGE_CORPUS", 29)
    with pytest.raises(CollectionError, match="MERGESEARCH_CACHE"):
        TrialEvaluator(spec)


def test_workers_share_the_cores() -> None:
    cores = default_threads(1)
    assert all(default_threads(n) * n <= max(n, cores) for n in range(1, 2 * cores + 1))
    assert default_threads(cores + 1) == 1
