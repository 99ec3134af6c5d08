"""The dashboard in a browser: its pages load from this machine alone, and show what mergesearch keeps with a study."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from optuna_dashboard import get_note

from mergesearch import load_study, open_store, run_study
from mergesearch.results.figures import FIGURES
from mergesearch.storage.dashboard import page_of
from mergesearch.storage.store import StudyStore
from tests.dashboards import served
from tests.tiny_studies import TinyStudy, make_study

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser import OfflinePage

pytest_plugins = ["tests.browser"]


@pytest.fixture(scope="module")
def home(grid_study: TinyStudy) -> Iterator[str]:
    """A dashboard for reading only."""
    with served(grid_study.storage, read_only=True) as home:
        yield home


@pytest.fixture(scope="module")
def study(home: str, grid_study: TinyStudy) -> str:
    """The address of its pages."""
    return home + page_of(grid_study.storage, "tiny")


def titles(page: Page) -> set[str]:
    """Of the figures that are drawn."""
    return set(page.locator("svg .gtitle").all_text_contents())


def shot(page: Page, name: str, folder: Path) -> None:
    """Keep a picture for people to look at, beside the test's other files."""
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def test_a_study_shows_its_figures_and_its_note(study: str, offline_page: OfflinePage, tmp_path: Path) -> None:
    with offline_page() as page:
        page.goto(study)
        page.get_by_text("Measured dev scores", exact=True).wait_for()
        page.get_by_text("Best so far by time", exact=True).wait_for()
        page.wait_for_load_state("networkidle")
        expected = {
            "Best so far by tokens",
            "Best so far by time",
            "Measured dev scores",
            "Coefficients of the best trials",
        }
        assert expected <= titles(page)
        shot(page, "study", tmp_path)
        page.goto(f"{study}/note")
        page.get_by_role("heading", name="Best so far").wait_for()
        assert page.get_by_text("mergesearch run study.yaml").is_visible()
        shot(page, "note", tmp_path)


@pytest.mark.slow
def test_every_page_loads_and_shows(home: str, study: str, offline_page: OfflinePage, tmp_path: Path) -> None:
    with offline_page() as page:
        page.goto(home)
        page.get_by_text("tiny", exact=False).first.wait_for()
        shot(page, "list", tmp_path)
        for tab, text in {
            "analytics": "Hyperparameter Relationships",
            "trials": "The chosen source alone and the highest dev score",
        }.items():
            page.goto(f"{study}/{tab}")
            page.get_by_text(text, exact=False).first.wait_for()
            page.wait_for_load_state("networkidle")
            shot(page, tab, tmp_path)


@pytest.mark.slow
def test_a_dashboard_for_reading_refuses_edits(study: str, grid_study: TinyStudy, offline_page: OfflinePage) -> None:
    with offline_page(expected=("status of 403", "this dashboard is read-only")) as page:
        edit(page, f"{study}/note", "Failed: this dashboard is read-only")
    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        assert "Somebody was here" not in get_note(store.study)


@pytest.mark.slow
def test_what_is_edited_in_the_browser_stays(own: TinyStudy, offline_page: OfflinePage) -> None:
    with served(own.storage) as home, offline_page() as page:
        edit(page, f"{home}{page_of(own.storage, 'tiny')}/note", "Success to save the note")
    study = load_study(own.change("search", "trials", to=6).file)
    with open_store(study) as store:
        assert get_note(store.study).startswith("Somebody was here")
        run_study(study, store)
        note = get_note(store.study)
    assert note.startswith("Somebody was here")
    assert "6 complete" in note


def edit(page: Page, address: str, answer: str) -> None:
    """Write above all that a note says."""
    page.goto(address)
    page.get_by_role("heading", name="Best so far").wait_for()
    page.locator("button:has(svg[data-testid=EditIcon])").first.click()
    field = page.locator("textarea").first
    field.fill("Somebody was here\n\n" + field.input_value())
    page.get_by_role("button", name="Save").click()
    page.get_by_text(answer).wait_for()


@pytest.fixture
def own(tmp_path: Path) -> TinyStudy:
    made = make_study(tmp_path)
    study = load_study(made.file)
    with open_store(study) as store:
        run_study(study, store)
    return made


def surrogate(made: TinyStudy) -> None:
    made.change("search", "strategy", to={"name": "embedding_surrogate"})
    made.change("merge", "coefficients", "alpha", to={"low": 0, "high": 1}).change("artifacts", to="artifacts")


def passthrough(made: TinyStudy) -> None:
    made.change("merge", "method", to="passthrough").change("search", "trials", to=None)
    made.change("merge", "coefficients", to={"source": {"values": ["retriever", "domain"]}})
    made.change("search", "strategy", to={"name": "grid"})


@pytest.mark.slow
@pytest.mark.parametrize("change", [surrogate, passthrough])
@pytest.mark.parametrize("dark", [False, True])
def test_other_studies_show_theirs(
    change: Callable[[TinyStudy], None], dark: bool, offline_page: OfflinePage, tmp_path: Path
) -> None:
    made = make_study(tmp_path)
    made.change("search", "trials", to=8)
    change(made)
    study = load_study(made.file)
    with open_store(study) as store:
        run_study(study, store)
    with served(made.storage) as home, offline_page(dark=dark) as page:
        page.goto(home + page_of(made.storage, "tiny"))
        page.get_by_text("Best so far by time", exact=True).wait_for()
        page.wait_for_load_state("networkidle")
        shown = titles(page)
        shot(page, "study", tmp_path)
    assert {FIGURES["coefficients"].title, "Measured dev scores", "Best so far by tokens"} <= shown
    if change is surrogate:
        assert "Predicted dev scores" in shown
        assert any("apart on average" in title for title in shown)
