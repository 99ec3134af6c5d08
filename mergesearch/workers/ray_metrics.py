"""A worker's readings, handed to Ray, whose agent on every node exports them for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from mergesearch.workers.metrics import METRICS, TRIAL_SECONDS, Reading

logger = logging.getLogger(__name__)


class RayMetrics:
    """All `METRICS`, as Ray has them in this process."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        for name, kind, unit, description, tags in METRICS:
            about: dict[str, Any] = {"description": f"{description} Unit: {unit}.", "tag_keys": tags}
            if kind == "histogram":
                about["boundaries"] = list(TRIAL_SECONDS)
            self._metrics[name] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}[kind](name, **about)

    def record(self, readings: Iterable[Reading]) -> None:
        """Hand them on. No trial is lost for want of a metric."""
        try:
            for name, value, tags in readings:
                metric = self._metrics[name]
                if isinstance(metric, Counter):
                    if value:  # it counts what was added, and refuses nothing
                        metric.inc(value, tags)
                elif isinstance(metric, Histogram):
                    metric.observe(value, tags)
                else:
                    metric.set(value, tags)
        except Exception:
            logger.exception("metrics were not recorded")
