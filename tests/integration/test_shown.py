"""Notes and figures that a study keeps for optuna-dashboard: what they say, when they are written, whose words stay."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path

import optuna
import plotly.graph_objects as go
import pytest
from optuna_dashboard import get_note, save_note

from mergesearch import load_study, open_store, run_study
from mergesearch.errors import StorageError
from mergesearch.listener import Listener
from mergesearch.results import keeper as keeping
from mergesearch.results.keeper import Keeper
from mergesearch.results.notes import code, escape, study_note, trial_notes
from mergesearch.results.view import StudyView
from mergesearch.storage.shown import MARKER, digest, with_ours
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from tests.storage_helpers import begin, result
from tests.storage_helpers import open_store as open_recorded
from tests.tiny_studies import TinyStudy, copy_study

pytest_plugins = ["tests.grid_fixtures", "tests.postgres"]


@pytest.fixture
def own(grid_study: TinyStudy, tmp_path: Path) -> TinyStudy:
    return copy_study(grid_study, tmp_path)


def drawn(store: StudyStore) -> dict[str, dict[str, object]]:
    """The figures as the dashboard puts them together."""
    from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

    attributes = store.study._storage.get_study_system_attrs(store.study._study_id)
    return {name: json.loads(text) for name, text in get_plotly_graph_objects(attributes).items()}


def test_a_study_that_ran_has_its_note_and_figures(store: StudyStore, view: StudyView) -> None:
    note = get_note(store.study)
    assert view.chosen is not None
    assert view.chosen.recipe is not None
    assert note.startswith(MARKER)
    for said in (
        "`linear`",
        "9 points",
        "| `retriever` | `retriever` |",
        view.study.content_hash("domain")[:12],
        "| `made` | dev | 8 | 30 | 1 |",
        "Strategy `grid`",
        "9 complete",
        "mergesearch run study.yaml",
        view.chosen.recipe.fingerprint[:12],
        "a selection score",
    ):
        assert said in note
    figures = drawn(store)
    assert {"best-so-far", "best-so-far-by-time", "measured-landscape", "coefficients", "wins-and-losses"} == set(
        figures
    )
    assert all(figure["data"] and figure["layout"]["title"]["text"] for figure in figures.values())  # type: ignore[index]


def test_the_best_trials_have_notes_and_the_others_none(store: StudyStore, view: StudyView) -> None:
    noted = trial_notes(view)
    assert view.choice is not None
    assert {view.choice.number, view.choice.best_number} <= set(noted)
    assert len(noted) < len(view.trials)
    for trial in view.trials:
        note = get_note(optuna.trial.Trial(store.study, store._key(trial.number)[1]))
        assert note == (f"{MARKER}\n\n{noted[trial.number]}" if trial.number in noted else "")
        if note:
            assert f"{trial.value:.4f} (a selection score" in note
            assert "| uniform average |" in note or "uniform average" in trial.label


def test_what_people_write_stays(own: TinyStudy) -> None:
    study = load_study(own.file)
    with open_store(study) as store:
        before = get_note(store.study)
        save_note(store.study, f"For the Tuesday meeting.\n\n{before}")
        keep(study, store)
        after = get_note(store.study)
        assert after.startswith(f"For the Tuesday meeting.\n\n{MARKER}\n\n")
        assert after.count("### Sources") == 1

        save_note(store.study, after.replace("### Sources", "### Sources (the second is odd)"))
        keep(study, store)
        edited = get_note(store.study)
        assert edited.startswith("For the Tuesday meeting.")
        above, _, ours = edited.rpartition(MARKER)
        assert "the second is odd" in above
        assert "the second is odd" not in ours

        save_note(store.study, "Only mine.")
        keep(study, store)
        assert get_note(store.study).startswith(f"Only mine.\n\n{MARKER}")


def keep(study: Study, store: StudyStore) -> None:
    keeper = Keeper(study, store)
    keeper.finished(0, "", store.scored()[0][1], new_best=False)
    keeper.keep()


def test_a_note_that_is_saved_meanwhile_stays(own: TinyStudy) -> None:
    with open_store(load_study(own.file)) as store, open_store_to_read(own) as other:
        saving = threading.Thread(target=save_note, args=(other.study, "Mine."))

        class Slow(go.Figure):
            def to_json(self, *args: object, **kwargs: object) -> str:
                saving.start()
                saving.join(2)
                return str(super().to_json(*args, **kwargs))

        store.keep_shown("ours", {}, {"slow": Slow()})
        saving.join()
        assert "Mine." in get_note(store.study)


def open_store_to_read(own: TinyStudy) -> StudyStore:
    return StudyStore.open(own.storage, "tiny", None, exclusive=False)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_an_editor_that_changes_line_ends_changes_nothing(ending: str) -> None:
    ours = "one\n\ntwo"
    note = with_ours("mine", ours, None).replace("\n", ending) + ending
    assert with_ours(note, "three", digest(ours)) == f"mine\n\n{MARKER}\n\nthree"


def test_a_note_that_is_no_longer_due_goes_and_leaves_others_words() -> None:
    assert with_ours(with_ours("", "ours", None), "", digest("ours")) == ""
    assert with_ours(with_ours("mine", "ours", None), "", digest("ours")) == "mine"


def test_notes_move_on_with_the_best_trials(postgres_url: str) -> None:
    """The same on a server, in which two coordinators take turns."""
    with open_recorded(postgres_url) as store, open_recorded(postgres_url) as other:
        numbers = [begin(s, 0.1 * k, f"t{k}") for k, s in enumerate((store, other))]
        store.finish(numbers[0], result(1))
        other.finish(numbers[1], result(2))
        trials = [optuna.trial.Trial(store.study, store._key(n)[1]) for n in numbers]
        store.keep_shown("study: NUL \x00 goes", {numbers[0]: "best"}, {})
        save_note(trials[0], "mine\n\n" + get_note(trials[0]))
        other.keep_shown("study: " + "long " * 2000, {numbers[1]: "better"}, {})
        assert [get_note(t) for t in trials] == ["mine", f"{MARKER}\n\nbetter"]
        other.keep_shown(f"study at {postgres_url}", {numbers[1]: "better"}, {})
        assert get_note(store.study).startswith(f"{MARKER}\n\nstudy at postgresql")
        assert "s3cret" not in get_note(store.study)
        assert "long" not in get_note(store.study)


def test_nothing_is_written_twice_that_did_not_change(postgres_url: str) -> None:
    from tests.benchmarks.traffic import traced

    with open_recorded(postgres_url) as store:
        store.finish(begin(store, 0.1, "a"), result(1))
        with traced() as first:
            store.keep_shown("a note " * 1000, {0: "best"}, {})
        with traced() as second:
            store.keep_shown("a note " * 1000, {0: "best"}, {})
    assert (first.writing, second.writing) == (1, 0)
    assert second.transactions == 1


class Told(Listener):
    """Hears how many trials finished, and breaks at each."""

    def __init__(self) -> None:
        self.finishes = 0

    def finished(self, *args: object, **kwargs: object) -> None:
        self.finishes += 1
        raise ValueError("a terminal that broke")


def test_a_run_keeps_seldom_and_at_its_end(own: TinyStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many trials there are, and whatever other listeners do."""
    kept: list[int] = []
    write = StudyStore.keep_shown
    monkeypatch.setattr(StudyStore, "keep_shown", lambda *given: kept.append(told.finishes) or write(*given))
    own.change("study", to="another").change("search", "enqueue", to=[])
    monkeypatch.setattr(keeping, "EVERY_SECONDS", 86400.0)
    study = load_study(own.file)
    for expected in ([9], [9]):  # the second run has nothing to do, and so nothing to tell
        told = Told()
        with open_store(study) as store:
            run_study(study, store, told)
        assert kept == expected
    own.change("study", to="often")
    monkeypatch.setattr(keeping, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(keeping, "MOST_SHARE", 1e9)
    told = Told()
    kept.clear()
    with open_store(load_study(own.file)) as store:
        run_study(load_study(own.file), store, told)
    assert kept == [*range(1, 10)]


class Impatient(Listener):
    """Presses Ctrl-C after the third trial."""

    def finished(self, number: int, *args: object, **kwargs: object) -> None:
        if number == 2:
            raise KeyboardInterrupt


def test_a_run_that_is_interrupted_leaves_its_note(own: TinyStudy) -> None:
    study = load_study(own.change("study", to="another").file)
    with open_store(study) as store:
        with pytest.raises(KeyboardInterrupt):
            run_study(study, store, Impatient())
        assert "3 complete" in get_note(store.study)


@pytest.mark.parametrize("error", [StorageError("the disk is full"), ValueError("a figure that cannot be drawn")])
def test_a_run_is_not_lost_for_want_of_a_note(
    own: TinyStudy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fail(*given: object) -> None:
        raise error

    monkeypatch.setattr(StudyStore, "keep_shown", fail)
    study = load_study(own.change("study", to="another").file)
    with open_store(study) as store, caplog.at_level(logging.WARNING):
        assert run_study(study, store).evaluated == 9
    assert "notes and figures were not saved" in caplog.text


def test_the_name_of_a_split_is_no_html(view: StudyView) -> None:
    """optuna-dashboard renders what HTML there is in a note."""
    harm = "<img src=x onerror=alert(1)>"
    made = (replace(view.study.collections[0], split=harm),)
    note = study_note(replace(view, study=replace(view.study, collections=made)))
    assert harm not in note
    assert escape(harm) in note


def test_names_are_no_markdown() -> None:
    assert code("a|b`c*\nd") == r"`a\|b'c* d`"
    assert code(r"a\|<img>") == "`a¦<img>`"
    assert escape("<b>*[x](y)*\n# |") == r"\<b\>\*\[x\](y)\*" + r" \# \|"
