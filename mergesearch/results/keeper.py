"""Keeps notes and figures with a study while it runs, for optuna-dashboard to show."""

from __future__ import annotations

import logging
import time
from typing import Any

from mergesearch.errors import StorageError
from mergesearch.evaluation.result import TrialResult
from mergesearch.listener import Listener
from mergesearch.results.notes import study_note, trial_notes
from mergesearch.results.view import StudyView, read_view
from mergesearch.storage.store import StudyStore
from mergesearch.study import Study
from mergesearch.surrogate.report import ScreeningReport

logger = logging.getLogger(__name__)

EVERY_SECONDS = 120.0
"""At most so often anything is kept."""
MOST_SHARE = 0.02
"""Of a run's time may go into it: a study of thousands of trials is read whole for it."""


class Keeper(Listener):
    """Writes notes and figures seldom: when something new is there and the last time is long enough ago.

    Several coordinators of a study may each have one; what the last one wrote stands.

    In a `with` statement what is new is kept at the end, too, however that comes about; but not when the database is
    what failed.

    Args:
        study: the resolved study.
        store: its records, driven by this process.
    """

    def __init__(self, study: Study, store: StudyStore) -> None:
        self._study, self._store = study, store
        self._report: ScreeningReport | None = None
        self._news = False
        self._next = time.monotonic() + EVERY_SECONDS

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, StorageError):
            self.keep()

    def screened(self, report: ScreeningReport) -> None:
        """Drawn with the next figures."""
        self._report = report

    def finished(self, number: int, label: str, result: TrialResult, *, new_best: bool) -> None:  # noqa: ARG002
        """News."""
        self._heard()

    def pruned(self, number: int, label: str, result: TrialResult) -> None:  # noqa: ARG002
        """News."""
        self._heard()

    def reused(self, number: int, label: str, value: float, original: int) -> None:  # noqa: ARG002
        """News."""
        self._heard()

    def failed(self, number: int, label: str, reason: str, *, retried: bool) -> None:  # noqa: ARG002
        """News."""
        self._heard()

    def keep(self) -> None:
        """Write what is new, now; a study is not lost for want of a figure."""
        if not self._news:
            return
        began = time.monotonic()
        try:
            view = read_view(self._study, self._store)
            self._store.keep_shown(study_note(view), trial_notes(view), self._figures(view))
            self._news = False
        except StorageError as error:
            logger.warning("notes and figures were not saved: %s", error)
        except Exception:
            logger.exception("notes and figures were not saved; the study goes on")
        now = time.monotonic()
        self._next = now + max(EVERY_SECONDS, (now - began) / MOST_SHARE)

    def _heard(self) -> None:
        self._news = True
        if time.monotonic() >= self._next:
            self.keep()

    def _figures(self, view: StudyView) -> dict[str, Any]:
        from mergesearch.results.figures import FIGURES  # plotly takes a second to import
        from mergesearch.results.figures.predicted_landscape import NAME, predicted_landscape

        drawn = {name: figure.draw(view) for name, figure in FIGURES.items()}
        if self._report is not None and self._report.landscape.coordinates:
            drawn[NAME] = predicted_landscape(self._report, self._study.space, view.metric)
        return {name: figure for name, figure in drawn.items() if figure is not None}
