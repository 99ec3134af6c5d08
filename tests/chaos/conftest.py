"""What the tests of faults share: a study, and the count of what was played."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.episode import Played, show
from tests.tiny_studies import TinyStudy, make_study


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def total(request: pytest.FixtureRequest) -> Iterator[Played]:
    played = Played()
    yield played
    show(request, f"chaos, all together: {played}")
