"""Hyperparameter search for the merge coefficients of retrieval models.

The names below are imported when they are first used, so that `import mergesearch` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergesearch.recipe import MergeRecipe
    from mergesearch.resolving import load_study
    from mergesearch.results.choose import choose
    from mergesearch.results.comparing import compare_studies
    from mergesearch.results.evaluate import evaluate_folder, evaluate_study
    from mergesearch.results.export import export_merge
    from mergesearch.results.mteb_tasks import evaluate_mteb
    from mergesearch.results.one_shot import ask_merge, merge_once
    from mergesearch.results.remake import merge_recipe
    from mergesearch.results.report.write import write_report
    from mergesearch.results.view import StudyView, TrialView, read_view
    from mergesearch.session import open_store, run_study
    from mergesearch.storage.store import StudyStore
    from mergesearch.study import Study

_HOMES = {
    "MergeRecipe": "mergesearch.recipe",
    "Study": "mergesearch.study",
    "StudyStore": "mergesearch.storage.store",
    "StudyView": "mergesearch.results.view",
    "TrialView": "mergesearch.results.view",
    "ask_merge": "mergesearch.results.one_shot",
    "choose": "mergesearch.results.choose",
    "compare_studies": "mergesearch.results.comparing",
    "evaluate_folder": "mergesearch.results.evaluate",
    "evaluate_mteb": "mergesearch.results.mteb_tasks",
    "evaluate_study": "mergesearch.results.evaluate",
    "export_merge": "mergesearch.results.export",
    "load_study": "mergesearch.resolving",
    "merge_once": "mergesearch.results.one_shot",
    "merge_recipe": "mergesearch.results.remake",
    "open_store": "mergesearch.session",
    "read_view": "mergesearch.results.view",
    "run_study": "mergesearch.session",
    "write_report": "mergesearch.results.report.write",
}

__all__ = [
    "MergeRecipe",
    "Study",
    "StudyStore",
    "StudyView",
    "TrialView",
    "ask_merge",
    "choose",
    "compare_studies",
    "evaluate_folder",
    "evaluate_mteb",
    "evaluate_study",
    "export_merge",
    "load_study",
    "merge_once",
    "merge_recipe",
    "open_store",
    "read_view",
    "run_study",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
