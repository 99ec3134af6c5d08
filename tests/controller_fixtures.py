"""A study and a bench to drive it on: `pytest_plugins = ["tests.controller_fixtures"]` in a test module gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergesearch.resolving import load_study
from tests.controller_toys import Bench
from tests.tiny_studies import TinyStudy, make_study


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def bench(tiny: TinyStudy, tmp_path: Path) -> Bench:
    return Bench(load_study(tiny.file), f"sqlite:///{tmp_path}/study.db")
