"""`grid_study` as its database and as people look at it: `pytest_plugins = ["tests.grid_fixtures"]`.

Both are only to be read.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mergesearch.resolving import load_study
from mergesearch.results.view import StudyView, read_view
from mergesearch.storage.store import StudyStore
from tests.tiny_studies import TinyStudy


@pytest.fixture(scope="module")
def store(grid_study: TinyStudy) -> Iterator[StudyStore]:
    with StudyStore.open(grid_study.storage, "tiny", None, exclusive=False) as store:
        yield store


@pytest.fixture(scope="module")
def view(grid_study: TinyStudy, store: StudyStore) -> StudyView:
    return read_view(load_study(grid_study.file), store)
