"""First stages of re-ranking, where candidates come from: one file each, found by their decorator; see `registry`."""

from __future__ import annotations

from mergesearch.evaluation.first_stages.registry import (
    FIRST_STAGES,
    Candidates,
    FirstStage,
    discover,
    first_stage,
    open_first_stage,
)

discover()

__all__ = ["FIRST_STAGES", "Candidates", "FirstStage", "first_stage", "open_first_stage"]
