"""From coefficients to weights.

`kernel.py` is the language of merge methods, `registry.py` holds them, `methods/` has one file for each,
`resident.py` overwrites one model in place with them, and `plan.py` says how much memory that takes.
"""

from __future__ import annotations

import importlib
import pkgutil

from mergesearch.merging import methods
from mergesearch.merging.declared import Coefficient, Option, Shorthand
from mergesearch.merging.method import MergeMethod
from mergesearch.merging.plan import ResidentBytes, resident_bytes
from mergesearch.merging.registry import METHODS, get_method, merge_method
from mergesearch.merging.resident import CHUNK_ELEMENTS, ResidentMerger

__all__ = [
    "CHUNK_ELEMENTS",
    "METHODS",
    "Coefficient",
    "MergeMethod",
    "Option",
    "ResidentBytes",
    "ResidentMerger",
    "Shorthand",
    "get_method",
    "merge_method",
    "resident_bytes",
]

for _module in pkgutil.iter_modules(methods.__path__):
    importlib.import_module(f"{methods.__name__}.{_module.name}")
