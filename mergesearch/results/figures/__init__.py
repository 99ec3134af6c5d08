"""Figures of a study, one file per figure: kept with the study for optuna-dashboard, and shown in reports."""

from __future__ import annotations

from mergesearch.results.figures import best_so_far, calibration, coefficients, front, landscape, wins
from mergesearch.results.figures.drawing import StudyFigure

__all__ = ["FIGURES", "StudyFigure"]

FIGURES: dict[str, StudyFigure] = {
    f.name: f
    for f in (
        best_so_far.BY_TOKENS,
        best_so_far.BY_TIME,
        front.FRONT,
        landscape.MEASURED,
        coefficients.COEFFICIENTS,
        wins.WINS,
        calibration.CALIBRATION,
    )
}
"""By name, in the order in which they are worth reading."""
