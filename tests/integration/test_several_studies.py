"""Several studies by one call: what they share is loaded once, and their scores are those of separate runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergesearch.resolving import load_study
from mergesearch.session import Workers
from mergesearch.storage.store import StudyStore
from mergesearch.workers.local_pool import LocalPool
from tests.tiny_studies import make_beir, make_study, mergesearch

KEPT = "sources: where they are, the model too"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four studies: the second and third differ from the first in all that may, the fourth has another template."""
    study = make_study(tmp_path_factory.mktemp("studies"))
    make_beir(study.folder / "other", seed=5)
    other: list[dict[str, Any]] = [{"name": "other", "folder": "other"}, {"name": "made", "folder": "collection"}]
    changes: dict[str, dict[tuple[str, ...], Any]] = {
        "grid": {("search",): {"strategy": "grid"}},
        "sphere": {
            ("search",): {"strategy": "random", "trials": 6},
            ("merge", "method"): "slerp",
            ("merge", "groups"): {"segments": 1, "embeddings": "template"},
            ("merge", "coefficients"): {"t": {"low": 0, "high": 1}},
            ("seed",): 7,
            ("evaluation", "metric"): "mrr@10",
            ("evaluation", "collections"): other,
        },
        "raced": {("search", "racing"): True, ("search", "trials"): 8},
        "turned": {("merge", "template"): "domain"},
    }
    found = {}
    for name, entries in changes.items():
        for path, to in entries.items():
            study.change(*path, to=to)
        study.change("study", to=name)
        found[name] = study.file.rename(study.folder / f"{name}.yaml")
        found[name].with_name("study.yaml").write_text(found[name].read_text())
    return found


def scores(url: str, study: str) -> list[Any]:
    with StudyStore.open(url, study, None, exclusive=False) as store:
        return [
            (t.number, t.state, t.params, t.value, [c.scores.tolist() for c in result.collections])
            for t in store.trials()
            if (result := store.result(t.number)) is not None
        ]


def test_scores_are_those_of_separate_runs_to_the_bit(files: dict[str, Path], tmp_path: Path) -> None:
    together = mergesearch("run", *files.values(), "--storage", f"sqlite:///{tmp_path}/together.db")
    assert together.code == 0, together.err
    parts = together.out.split("study ")[1:]
    assert [part.split()[0] for part in parts] == list(files)
    assert [KEPT in part for part in parts] == [False, True, True, False]
    for name, file in files.items():
        assert mergesearch("run", file, "--storage", f"sqlite:///{tmp_path}/{name}.db").code == 0
        alone = scores(f"sqlite:///{tmp_path}/{name}.db", name)
        assert scores(f"sqlite:///{tmp_path}/together.db", name) == alone
        assert len({value for *_, value, _ in alone}) > 1


def test_weights_and_model_are_not_loaded_again(files: dict[str, Path]) -> None:
    workers = Workers()
    pool = workers.serve(load_study(files["grid"]))
    assert isinstance(pool, LocalPool)
    assert pool._evaluator is not None
    loaded = (pool._evaluator.model, pool._evaluator.merger)
    assert workers.serve(load_study(files["sphere"])) is pool
    assert (pool._evaluator.model, pool._evaluator.merger) == loaded
    assert workers.serve(load_study(files["turned"])) is not pool
    workers.close()
    assert pool._evaluator is None


def test_a_problem_of_one_file_is_told_before_any_study_begins(files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text(files["grid"].read_text().replace("strategy", "stratgy"))
    answer = mergesearch("run", files["grid"], broken, "--storage", f"sqlite:///{tmp_path}/none.db")
    assert answer.code == 2
    assert "broken.yaml" in answer.err
    assert not (tmp_path / "none.db").exists()
