"""Starting from another study, in SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.starting_suite import StartSuite
from tests.starting_toys import make_layers
from tests.tiny_studies import TinyStudy


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_layers(tmp_path_factory.mktemp("study"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


class TestSQLite(StartSuite):
    pass
