"""The panel and the line of `run` and `status --watch`: the right numbers at every width."""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mergesearch.cli.panel import MOST_MARKS, duration, line, panel
from mergesearch.cli.progress import StudyProgress
from mergesearch.evaluation.result import TrialResult
from mergesearch.resolving import load_study
from mergesearch.results.status import read_status
from mergesearch.results.view import read_view
from mergesearch.results.watch import Mark, Snapshot, Watch, WorkerState
from mergesearch.storage.coordinators import CoordinatorState
from mergesearch.storage.store import StudyStore
from tests.tiny_studies import TinyStudy

WIDTHS = (40, 80, 200)
LABEL = "alpha.segment_1=0.2773, alpha.segment_2=0.7351, lambda.segment_1=[bold]1, lambda.segment_2=0.25"


def driver(number: int) -> CoordinatorState:
    return CoordinatorState(number, "", "a-machine", 100 + number, datetime(2026, 1, 1, tzinfo=UTC), 0.0, True, 1)


RUNNING = Snapshot(
    study="a study",
    file="study.yaml",
    counts={"complete": 61, "running": 2, "pruned": 7, "fail": 1},
    done=69,
    planned=400,
    seconds_left=7500.0,
    best=Mark(17, LABEL, 0.4561),
    luck=0.0123,
    marks=(Mark(0, "retriever alone", 0.4312), Mark(1, "domain's layers", 0.4599), Mark(2, "uniform average", None)),
    tokens=1_234_567,
    tokens_per_second=4321.0,
    gpu_hours=0.5,
    gpu_hours_granted=2.0,
    workers=(WorkerState("worker-1", 1, 70, LABEL), WorkerState("worker-2", 1, None, "")),
    coordinators=(driver(1),),
    wanted="run",
)


def drawn(now: Snapshot, width: int, batches: tuple[int, int] | None = None) -> list[str]:
    """What stands on a terminal of that width."""
    console = Console(record=True, width=width, height=200, force_terminal=True, file=io.StringIO())
    console.print(panel(now, batches))
    return console.export_text().splitlines()


def words(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_a_running_study_at_every_width(width: int) -> None:
    lines = drawn(RUNNING, width, batches=(12, 40))
    assert max(map(len, lines)) <= width
    text = words(lines)
    for part in (
        "a study: 69 of 400 trials, about 2 h 5 min left",
        "61 done, 2 running, 7 pruned, 1 failed",
        "best: trial 17 0.4561",
        "retriever alone 0.4312 +0.0249",
        "domain's layers 0.4599 -0.0038",
        "uniform average –",
        "a selection score; about 0.0123 of it is luck",
        "4,321 tokens/s, 1,234,567 tokens encoded, 0.5 of 2 GPU-hours",
        "trial 70",
        "12/40",
        "worker-2 idle",
        "driven by process 101 on a-machine",
    ):
        assert part in text
    assert "left behind" not in text
    if width == 200:
        assert f"trial 17: {LABEL}" in text  # as it is: nothing in it is markup


@given(
    width=st.integers(30, 130),
    name=st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=90),
    workers=st.integers(0, 40),
    marks=st.integers(0, 20),
    drivers=st.integers(0, 5),
)
def test_no_name_is_too_long_and_nothing_too_many(
    width: int, name: str, workers: int, marks: int, drivers: int
) -> None:
    now = replace(
        RUNNING,
        study=name,
        best=Mark(17, name, 0.4561),
        marks=tuple(Mark(i, f"{i} {name}", i / 100) for i in range(marks)),
        workers=tuple(
            WorkerState(f"{i}{name}", 1, i if i % 2 else None, name if i % 2 else "") for i in range(workers)
        ),
        coordinators=tuple(map(driver, range(drivers))),
    )
    console = Console(width=width, height=200, force_terminal=True, file=io.StringIO())
    lines = console.render_lines(panel(now), pad=False)
    assert max(sum(segment.cell_length for segment in line) for line in lines) <= width
    text = words(["".join(s.text for s in line if not s.control) for line in lines])
    for mark in sorted(now.marks, key=lambda m: m.value or 0)[-MOST_MARKS:]:
        assert f"{mark.value:.4f} {0.4561 - (mark.value or 0):+.4f}" in text or mark.number == 17
    assert "0.4561" in text
    assert "\n" not in line(now)


def test_many_workers_are_counted() -> None:
    workers = tuple(WorkerState(f"worker-{i}", 1, i if i < 9 else None, "") for i in range(12))
    assert "workers: 9 with a trial, 3 idle" in words(drawn(replace(RUNNING, workers=workers), 80))


def test_workers_of_several_processes_are_told_apart() -> None:
    workers = (WorkerState("local", 1, 70, ""), WorkerState("local", 2, 71, ""))
    text = words(drawn(replace(RUNNING, workers=workers, coordinators=(driver(1), driver(2))), 80, batches=(3, 4)))
    assert "local of a-machine:101 trial 70" in text
    assert "local of a-machine:102 trial 71" in text
    assert "3/4" not in text  # whose they are is not known


def test_what_is_not_known_is_not_said() -> None:
    early = replace(RUNNING, counts={}, done=0, seconds_left=None, best=None, marks=(), tokens=0, workers=())
    text = words(drawn(early, 80))
    assert "0 of 400 trials, time left unknown until trials have ended" in text
    assert "token" not in text
    assert "0 trials, time left unknown" in words(drawn(replace(early, planned=None), 80))
    done = replace(RUNNING, done=400, seconds_left=0.0)  # and the program goes on with something else
    assert "a study: 400 of 400 trials ━" in words(drawn(done, 80))
    paused = words(drawn(replace(RUNNING, wanted="pause", seconds_left=None), 80))
    assert "69 of 400 trials, paused" in paused
    assert "to go on: mergesearch control study.yaml go" in paused
    left = replace(RUNNING, coordinators=(), counts={"complete": 3, "orphaned": 2}, seconds_left=None, workers=())
    assert left.over
    assert "nobody runs it 2 left behind by a run that ended; the next run takes over" in words(drawn(left, 80))


def test_lines_differ_when_something_happened_and_not_with_time() -> None:
    assert replace(RUNNING, seconds_left=1.0, tokens_per_second=None).news == RUNNING.news
    for other in (
        replace(RUNNING, counts={"complete": 62}),
        replace(RUNNING, coordinators=()),
        replace(RUNNING, wanted="drain"),
    ):
        assert other.news != RUNNING.news
    assert line(RUNNING) == (
        "69 of 400 trials, about 2 h 5 min left; 61 done, 2 running, 7 pruned, 1 failed; "
        f"highest: trial 17 ({LABEL}), dev score 0.4561 (a selection score; about 0.0123 of it is luck), "
        "+0.0249 over retriever alone, -0.0038 over domain's layers; "
        "4,321 tokens/s, 1,234,567 tokens encoded, 0.5 of 2 GPU-hours; driven by process 101 on a-machine"
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3599, "1 h 0 min"), (7500, "2 h 5 min"), (200_000, "2 d 7 h")],
)
def test_times_in_their_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("width", WIDTHS)
def test_a_finished_study_read_from_its_database(grid_study: TinyStudy, width: int) -> None:
    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        view, status, now = read_view(load_study(grid_study.file), store), read_status(store), Watch(store).read()
    assert view.highest is not None
    assert view.uniform is not None
    assert now.over
    assert now.best == Mark(view.highest.number, view.highest.label, view.highest.value)
    assert now.luck == status.best_optimism
    assert {m.label: m.value for m in now.marks} == {t.label: t.value for t in (*view.sources.values(), view.uniform)}
    assert now.done == now.planned == len(view.trials)
    assert now.tokens == sum(t.tokens for t in view.trials)
    assert (now.seconds_left, now.tokens_per_second, now.workers) == (None, None, ())
    lines = drawn(now, width)
    assert max(map(len, lines)) <= width
    text = words(lines)
    assert f"best: trial {view.highest.number} {view.highest.value:.4f}" in text
    for mark in now.marks:
        assert re.search(rf"{re.escape(mark.label)} {mark.value:.4f} (\+0\.\d{{4}}|the same)", text)
    assert "nobody runs it" in text


def test_what_was_read_is_read_no_more(grid_study: TinyStudy) -> None:
    """A look at a study that rests is a few small statements, and no resampling."""
    import sqlalchemy as sa

    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        watch = Watch(store)
        first, said = watch.read(), list[str]()
        sa.event.listen(store._storage.engine, "before_cursor_execute", lambda *args: said.append(str(args[2])))
        assert watch.read() == first
    assert len(said) <= 5
    assert not [statement for statement in said if "mergesearch_scores" in statement]


def test_in_a_pipe_there_are_plain_lines(
    grid_study: TinyStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody wants colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    result = TrialResult((), {"encode": 1.25}, 10)
    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        result = store.result(0) or result
        with StudyProgress(store) as progress:
            progress.started(7, "a [bold]label")
            progress.batch(1, 3)
            progress.screening()
            progress.finished(7, "a [bold]label", result, new_best=True)
            progress.failed(8, "another", "for \x1b[31ma\x1b[0m\nreason\x07", retried=False)
            progress.reused(9, "a third", 0.25, 7)
    out = capsys.readouterr().out
    seconds = sum(result.seconds.values())
    assert out.splitlines() == [
        f"trial   7  {result.value:.4f}  {seconds:5.1f} s  a [bold]label  best so far",
        "trial   8  failed        –  another: for a reason ",
        "trial   9  0.2500        –  a third (same merge as trial 7)",
    ]
    assert "\x1b" not in out
    assert os.environ["FORCE_COLOR"] == "1"
