"""`mergesearch clean` removes what nobody used and nothing needs, and nothing else."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from mergesearch.artifacts import Artifacts
from mergesearch.cleaning import DAY
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.cached import cached
from mergesearch.storage.store import StudyStore
from tests.tiny_studies import TinyStudy, make_study, mergesearch


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("MERGESEARCH_STORAGE", "MERGESEARCH_STORAGE_FILE", "OPTUNA_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def study(tmp_path: Path) -> TinyStudy:
    """A study that keeps embeddings, run once."""
    made = make_study(tmp_path / "study").change("artifacts", to="kept")
    made.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1}})
    made.change("search", to={"strategy": "embedding_surrogate", "trials": 4})
    assert mergesearch("run", made.file).code == 0
    return made


def age(path: Path, days: float) -> None:
    at = time.time() - days * DAY
    for file in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(file, (at, at))


def leave(path: Path, content: bytes = b"left") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_embeddings_of_live_studies_stay_however_old(study: TinyStudy) -> None:
    folder = study.folder / "kept"
    recorded = {path.name for path in folder.iterdir()}
    with StudyStore.open(study.storage, "tiny", None, exclusive=False) as store:
        assert len(recorded) == len(store.trials()) == 4
    orphan = folder / Artifacts(folder).write(b"of a study that was deleted")
    young = folder / Artifacts(folder).write(b"of a trial that has not ended")
    part = leave(folder / f"{'0' * 64}.77.part")
    foreign = leave(folder / "notes.txt")
    for path in folder.iterdir():
        age(path, 31)
    age(young, 29)

    listed = mergesearch("clean", study.file, "--dry-run")
    assert listed.code == 0, listed.err
    assert orphan.name in listed.out
    assert "would remove 2 entries" in listed.out
    assert not any(name in listed.out for name in (*recorded, young.name, foreign.name))
    assert orphan.is_file()

    assert "removed 2 entries" in mergesearch("clean", study.file).out
    assert {path.name for path in folder.iterdir()} == recorded | {young.name, foreign.name}
    assert not part.exists()
    (study.folder / "study.db").unlink()
    answer = mergesearch("clean", study.file, "--days", "1")
    assert (answer.code, young.is_file()) == (4, True), "without its database nobody knows what a study needs"


def test_of_the_cache_goes_what_was_not_read_for_long(cache: Path) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    hashed = leave(cache / "file-hashes" / digest)
    statistic = leave(cache / "statistics" / digest[:2] / f"{digest}.safetensors")
    embeddings = leave(cache / "embeddings" / digest)
    tokens = leave(cache / "tokens-x1" / "ids").parent
    trained = cached("contrastive", {"seed": 1}, lambda path: leave(path / "model.safetensors"))
    partial = leave(cache / "contrastive" / ".partial-abc" / "model.safetensors").parent
    ours = [hashed, statistic, embeddings, tokens, trained, partial]
    foreign = [leave(cache / "README"), leave(cache / "models" / "model.bin"), leave(cache / "file-hashes" / "x")]
    assert cache_dir() == cache
    for path in [*ours, *foreign, *cache.glob("contrastive/*.json")]:
        age(path, 40)
    assert mergesearch("clean", "--days", "50").out.startswith("removed 0 entries")
    at = time.time()
    os.utime(trained / "model.safetensors", (at, at - 40 * DAY))  # read, not written
    assert mergesearch("clean").code == 0
    assert [path.exists() for path in ours] == [False, False, False, False, True, False]
    assert all(path.is_file() for path in foreign)
    age(trained, 40)
    assert mergesearch("clean").code == 0
    assert list((cache / "contrastive").iterdir()) == []


def test_a_trained_source_of_a_live_study_stays(tmp_path: Path, study: TinyStudy) -> None:
    trained = cached("contrastive", {"seed": 2}, lambda path: (study.folder / "domain").rename(path))
    study.change("sources", "domain", to=str(trained)).change("study", to="refers")
    assert mergesearch("run", study.file).code == 0
    age(trained, 40)
    age(trained.with_name(f"{trained.name}.key.json"), 40)
    assert mergesearch("clean", "--storage", study.storage).code == 0
    assert (trained / "model.safetensors").is_file()
    assert mergesearch("clean").code == 0
    assert not trained.exists()


def test_buckets_are_refused_with_the_remedy(study: TinyStudy) -> None:
    study.change("artifacts", to="s3://bucket")
    answer = mergesearch("clean", study.file)
    assert answer.code == 4
    assert "lifecycle" in answer.err
