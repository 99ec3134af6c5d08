"""What a study may spend: trials, GPU-hours, and the minutes of a session."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from mergesearch.evaluation.result import GPU_SECONDS_ATTR, IMPORTED_ATTR
from mergesearch.study_schema import SearchEntry


class Budget:
    """The budget of a study; its session's minutes count from `start`.

    Args:
        search: what may be spent; whatever is None there has no limit.
    """

    def __init__(self, search: SearchEntry) -> None:
        self._search = search
        self._started = math.inf

    def start(self) -> None:
        """The session begins."""
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the session's beginning."""
        return time.monotonic() - self._started

    @property
    def out_of_time(self) -> bool:
        """Whether the session's minutes are over."""
        minutes = self._search.minutes
        return minutes is not None and self.seconds >= 60 * minutes

    def used_up(self, history: Sequence[FrozenTrial], open_gpu_seconds: float) -> str:
        """Why the budget allows no further trial; empty when it does. Trials in flight count as evaluated.

        Args:
            history: all trials of the study.
            open_gpu_seconds: what trials that have no end yet have held GPUs for.
        """
        search = self._search
        free = {"duplicate_of", IMPORTED_ATTR}
        evaluated = [t for t in history if t.state != TrialState.FAIL and free.isdisjoint(t.user_attrs)]
        if search.trials is not None and len(evaluated) >= search.trials:
            return f"all {search.trials} trials are done"
        if search.gpu_hours is not None:
            ended: float = sum(t.user_attrs.get(GPU_SECONDS_ATTR, 0.0) for t in history)
            if ended + open_gpu_seconds >= 3600 * search.gpu_hours:
                return f"all {search.gpu_hours:g} GPU-hours are used"
        if self.out_of_time:
            return f"the {search.minutes:g} minutes of this session are over"
        return ""
