"""The pace of a study, on trials whose pace is known."""

from __future__ import annotations

from datetime import datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergesearch.results.pace import RECENT, Ended, pace

BEGIN = datetime(2026, 1, 1)


def ended(start: float, end: float, tokens: int = 1000, gpu_seconds: float = 0.0) -> Ended:
    return Ended(BEGIN + timedelta(seconds=start), BEGIN + timedelta(seconds=end), tokens, gpu_seconds)


@given(
    workers=st.sampled_from([1, 2, 5, 10]), rounds=st.integers(1, 12), seconds=st.floats(0.5, 5000), seed=st.integers()
)
def test_workers_side_by_side_end_so_many_trials_per_duration(
    workers: int, rounds: int, seconds: float, seed: int
) -> None:
    """However many went before, and in whatever order they come."""
    trials = [
        ended(r * seconds, (r + 1) * seconds, gpu_seconds=2 * seconds) for r in range(rounds) for _ in range(workers)
    ]
    Random(seed).shuffle(trials)
    found = pace(trials, workers)
    assert found is not None
    assert found.trials == pytest.approx(workers / seconds, rel=1e-4)
    assert found.tokens == pytest.approx(1000 * found.trials, rel=1e-9)
    assert found.gpu_seconds == pytest.approx(2 * workers, rel=1e-4)


def test_what_lies_between_trials_counts() -> None:
    found = pace([ended(10 * i, 10 * i + 6) for i in range(5)], 1)
    assert found is not None
    assert found.trials == pytest.approx(5 / 46)


def test_the_first_of_many_that_run_side_by_side_stands_for_all() -> None:
    found = pace([ended(0, 30)], 8)
    assert found is not None
    assert found.trials == pytest.approx(8 / 30)


def test_only_the_newest_trials_count() -> None:
    slow = [ended(100 * i, 100 * (i + 1)) for i in range(50)]
    fast = [ended(5000 + i, 5001 + i) for i in range(RECENT)]
    found = pace([*fast, *slow], 1)
    assert found is not None
    assert found.trials == pytest.approx(1.0)


def test_nothing_is_known_before_a_trial_has_ended_or_where_no_time_has_passed() -> None:
    assert pace([], 3) is None
    assert pace([ended(1, 1)], 0) is None
    assert pace([ended(1, 1)], 2) is None
