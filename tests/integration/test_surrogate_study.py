"""Studies on interpolated embeddings: whole, interrupted, with embeddings lost, on Ray workers, and raced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mergesearch.controller import Controller
from mergesearch.listener import Listener
from mergesearch.resolving import load_study
from mergesearch.session import open_store, run_study
from mergesearch.study import Study
from mergesearch.surrogate.report import ScreeningReport
from mergesearch.workers.local_pool import LocalPool
from mergesearch.workers.pool import Outcome
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch

SEARCH = {
    "strategy": {"name": "embedding_surrogate", "objective": "mean", "candidates": 128, "patience": 50},
    "trials": 9,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    made = make_study(tmp_path_factory.mktemp("study"))
    made.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "step": 0.05}})
    return made.change("search", to=SEARCH).change("artifacts", to="embeddings")


@pytest.fixture
def own(tiny: TinyStudy, tmp_path: Path) -> TinyStudy:
    """The same study before its first trial, with embeddings in a folder of its own."""
    copied = copy_study(tiny, tmp_path / "study")
    (copied.folder / "study.db").unlink(missing_ok=True)
    return copied.change("artifacts", to="elsewhere")


class Ear(Listener):
    def __init__(self) -> None:
        self.reports: list[ScreeningReport] = []

    def screened(self, report: ScreeningReport) -> None:
        self.reports.append(report)


def run(tiny: TinyStudy) -> tuple[list[tuple[object, ...]], list[ScreeningReport]]:
    """Runs the study to its end: numbers, points and values of its trials, and what was predicted in this call."""
    study = load_study(tiny.file)
    ear = Ear()
    with open_store(study) as store:
        run_study(study, store, ear)
        table = [(t.number, dict(t.params), t.value) for t in store.trials()]
        assert store.unfinished() == []
    return table, ear.reports


@pytest.fixture(scope="module")
def whole(tiny: TinyStudy) -> tuple[list[tuple[object, ...]], list[ScreeningReport]]:
    return run(tiny)


def test_predictions_are_recorded_beside_what_was_measured(
    tiny: TinyStudy, whole: tuple[list[tuple[object, ...]], list[ScreeningReport]]
) -> None:
    table, reports = whole
    assert len(table) == 9
    assert len(reports) == 4  # two sources, their average and two more corners come first
    with open_store(load_study(tiny.file)) as store:
        trials = store.trials()
        for trial, report in zip(trials[5:], reports, strict=True):
            assert trial.user_attrs["predicted"] == pytest.approx(report.picks[0].mean, abs=1e-6)
            assert trial.user_attrs["deviation"] == pytest.approx(report.picks[0].sd, abs=1e-6)
            assert trial.user_attrs["optimism"] >= 0
            json.dumps(trial.user_attrs)
        for trial in trials:
            result = store.result(trial.number)
            assert result is not None
            assert (tiny.folder / "embeddings" / result.embeddings).is_file()
        figures = [
            key
            for key in store.study._storage.get_study_system_attrs(store.study._study_id)
            if "predicted-landscape" in key
        ]
        assert figures
    shown = mergesearch("status", tiny.file)
    assert "predicted" in shown.out
    assert "off on average" in shown.out
    # Each prediction learns from one more merge, and its calibration covers all of them.
    assert [len(r.left_out) for r in reports] == [5, 6, 7, 8]
    assert all(r.replay_error < 0.02 for r in reports)  # embeddings are kept in 16 bits; near ties may turn


def test_a_study_that_is_resumed_after_every_trial_goes_the_same_way(
    own: TinyStudy, whole: tuple[list[tuple[object, ...]], list[ScreeningReport]]
) -> None:
    for trials in range(4, 10):
        own.change("search", "trials", to=trials)
        table, _ = run(own)
    assert table == whole[0]


def test_embeddings_that_are_lost_are_encoded_again(
    own: TinyStudy, whole: tuple[list[tuple[object, ...]], list[ScreeningReport]]
) -> None:
    own.change("search", "trials", to=6)
    run(own)
    paths = sorted((own.folder / "elsewhere").iterdir())
    before = {path: path.read_bytes() for path in paths}
    for path in paths[::2]:
        path.write_bytes(before[path][:-7])
    for path in paths[1::2]:
        path.unlink()
    paths[1].mkdir()  # there, and cannot be read
    own.change("search", "trials", to=9)
    done = mergesearch("run", own.file)
    assert done.code == 0, done.err
    assert "tokens encoded again for predictions" in done.out
    table, _ = run(own)
    assert table == whole[0]
    with open_store(load_study(own.file)) as store:
        for number in range(9):
            result = store.result(number)
            assert result is not None
            path = own.folder / "elsewhere" / result.embeddings
            assert path.is_file() or not result.embeddings
    assert [path.read_bytes() for path in paths if path != paths[1]] == [
        before[path] for path in paths if path != paths[1]
    ]


def test_it_learns_from_trials_of_another_strategy(own: TinyStudy) -> None:
    own.change("search", to={"strategy": "random", "trials": 7})
    run(own)
    own.change("search", to={**SEARCH, "trials": 12})
    _, reports = run(own)
    assert len(reports[0].left_out) >= 7


@pytest.mark.slow
def test_ray_workers_predict_what_a_local_one_does(
    own: TinyStudy, whole: tuple[list[tuple[object, ...]], list[ScreeningReport]]
) -> None:
    done = mergesearch("run", own.file, "--workers", "ray", "--count", "1")
    assert done.code == 0, done.err
    with open_store(load_study(own.file)) as store:
        assert [(t.number, dict(t.params), t.value) for t in store.trials()] == whole[0]


def test_a_raced_study_keeps_embeddings_of_whole_trials_only(own: TinyStudy) -> None:
    own.change("search", "racing", to={"looks": 2})
    run(own)
    with open_store(load_study(own.file)) as store:
        for trial in store.trials():
            result = store.result(trial.number)
            assert result is not None
            assert bool(result.embeddings) == (trial.state.name == "COMPLETE")


class Dying(LocalPool):
    """A worker that dies of its first screenings."""

    def __init__(self, study: Study, deaths: int) -> None:
        super().__init__(study.evaluator_spec())
        self.deaths = deaths

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        task = self._task
        assert task is not None
        if task.number < 0 and self.deaths:
            self.deaths -= 1
            self._task = None
            return [Outcome(task, "local", failure="killed by signal 9", worker_died=True)]
        return super().wait()


def test_a_screening_whose_worker_dies_is_asked_again(
    own: TinyStudy, whole: tuple[list[tuple[object, ...]], list[ScreeningReport]]
) -> None:
    study = load_study(own.file)
    with open_store(study) as store:
        with Dying(study, deaths=2) as pool:
            Controller(study, store, pool, Listener()).run()
        assert [(t.number, dict(t.params), t.value) for t in store.trials()] == whole[0]


def test_choices_without_an_order_are_refused_by_name(own: TinyStudy) -> None:
    own.change("merge", to={
        "method": "passthrough",
        "template": "retriever",
        "groups": {"segments": 2},
        "coefficients": {"source": {"values": ["retriever", "domain"]}},
    })  # fmt: skip
    refused = mergesearch("validate", own.file)
    assert refused.code == 2
    assert "source.segment_1" in refused.err
    assert "no order" in refused.err or "without an order" in refused.err


def test_kept_rows_of_a_large_corpus_are_filled_in(own: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With only judged and highly ranked documents kept, predictions are those from all documents, nearly."""
    from mergesearch.evaluation import kept

    _, everything = run(own.change("artifacts", to="all").change("search", "trials", to=6))
    monkeypatch.setattr(kept, "MOST_WHOLE", 5)
    other = copy_study(own, own.folder.parent / "other")
    (other.folder / "study.db").unlink()
    _, some = run(other.change("artifacts", to="some"))
    np.testing.assert_allclose([r.picks[0].mean for r in some], [r.picks[0].mean for r in everything], atol=0.02)
    sizes = [path.stat().st_size for path in (other.folder / "some").iterdir()]
    assert max(sizes) < min(path.stat().st_size for path in (own.folder / "all").iterdir())


def test_large_embeddings_are_projected_and_a_resumed_study_goes_the_same_way(
    tiny: TinyStudy,
    own: TinyStudy,
    whole: tuple[list[tuple[object, ...]], list[ScreeningReport]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mergesearch.evaluation import kept

    monkeypatch.setattr(kept, "LARGE", 0)
    monkeypatch.setattr(kept, "LOST_ENERGY", 0.005)
    monkeypatch.setattr(kept, "LEAST_SAVED", 0.0)  # these texts have few directions to do without
    other = copy_study(own, own.folder.parent / "other")
    table, reports = run(own.change("search", "trials", to=7))
    projected = own.folder / "elsewhere"
    for trials in (5, 6, 7):  # the fifth is the last before the first prediction
        for path in list((other.folder / "elsewhere").glob("*"))[::2]:
            path.unlink()
        resumed, _ = run(other.change("search", "trials", to=trials))
    assert resumed == table
    plain, small = ({path.stat().st_size for path in f.iterdir()} for f in (tiny.folder / "embeddings", projected))
    assert max(small) < min(plain)
    # What is predicted from the same merges is nearly the same.
    assert reports[0].replay_error < 0.05
    assert reports[0].best_measured == whole[1][0].best_measured


def test_a_place_that_keeps_no_artifacts_is_refused_with_its_line(own: TinyStudy) -> None:
    refused = mergesearch("validate", own.change("artifacts", to="ftp://host/somewhere").file)
    assert refused.code == 2
    assert own.line_of("ftp://host") in refused.err
    assert "s3://BUCKET" in refused.err
