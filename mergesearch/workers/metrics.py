"""What workers report of themselves for Prometheus: the metrics, and their values after a task.

Ray exports a metric as `ray_NAME`, a counter as `ray_NAME_total` and a histogram as `ray_NAME_bucket`, `_count` and
`_sum`. (Its histograms arrive as buckets, so the sum is one of their middles.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import psutil
import torch

from mergesearch.evaluation.result import TrialResult
from mergesearch.workers.pool import Outcome, ScreeningTask

Kind = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """One metric: its name without `ray_`, what it counts in which unit, and the labels of its values."""

    name: str
    kind: Kind
    unit: str
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> str:
        """The name under which Prometheus finds it."""
        return f"ray_{self.name}" + {"counter": "_total", "gauge": "", "histogram": "_bucket"}[self.kind]


class Reading(NamedTuple):
    """What is added to a counter, set on a gauge or put into a histogram."""

    name: str
    value: float
    tags: Mapping[str, str]


METRICS = (
    Metric(
        "mergesearch_trials",
        "counter",
        "trials",
        "Trials that workers ended: complete, pruned or failed. One whose worker died is none of them.",
        ("study", "outcome"),
    ),
    Metric("mergesearch_tokens", "counter", "tokens", "Useful tokens encoded.", ("study",)),
    Metric("mergesearch_layer_tokens", "counter", "tokens", "Useful tokens times the layers run for them.", ("study",)),
    Metric("mergesearch_phase_seconds", "counter", "seconds", "Time in each phase of trials.", ("study", "phase")),
    Metric("mergesearch_trial_seconds", "histogram", "seconds", "Time that a trial took its worker.", ("study",)),
    Metric(
        "mergesearch_tokens_per_second",
        "gauge",
        "tokens/second",
        "Useful tokens per second of encoding, in the newest trial.",
        ("study", "worker"),
    ),
    Metric("mergesearch_prefix_hits", "counter", "batches", "Batches begun above the first layer.", ("study",)),
    Metric("mergesearch_prefix_misses", "counter", "batches", "Batches that ran all layers.", ("study",)),
    Metric(
        "mergesearch_gpu_memory_bytes", "gauge", "bytes", "Memory of its GPUs that a worker holds.", ("study", "worker")
    ),
    Metric("mergesearch_host_memory_bytes", "gauge", "bytes", "Resident memory of a worker.", ("study", "worker")),
    Metric("mergesearch_out_of_memory", "counter", "times", "How often memory ran out in a trial.", ("study",)),
)
"""All that workers emit. Boards and alerts may rely on these names and labels."""
TRIAL_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
"""Upper bounds of the histogram's buckets."""


def readings(outcome: Outcome, study: str, *, seconds: float, hits: int, misses: int) -> Iterator[Reading]:
    """What a worker has to report after a task.

    Args:
        outcome: of the task.
        study: the study's name.
        seconds: that the task took.
        hits: batches of it that were begun above the first layer.
        misses: batches that were not, where hidden states are reused at all.
    """
    of_study = {"study": study}
    of_worker = {"study": study, "worker": outcome.worker}
    yield Reading("mergesearch_host_memory_bytes", psutil.Process().memory_info().rss, of_worker)
    if torch.cuda.is_available():
        held = sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))
        yield Reading("mergesearch_gpu_memory_bytes", held, of_worker)
    yield Reading("mergesearch_prefix_hits", hits, of_study)
    yield Reading("mergesearch_prefix_misses", misses, of_study)
    if isinstance(outcome.task, ScreeningTask):
        return
    yield Reading("mergesearch_trial_seconds", seconds, of_study)
    result = outcome.result
    if not isinstance(result, TrialResult):
        yield Reading("mergesearch_trials", 1, {**of_study, "outcome": "failed"})
        return
    yield Reading("mergesearch_trials", 1, {**of_study, "outcome": "pruned" if result.stopped else "complete"})
    yield Reading("mergesearch_tokens", result.tokens, of_study)
    yield Reading("mergesearch_layer_tokens", result.layer_tokens, of_study)
    yield Reading("mergesearch_out_of_memory", result.out_of_memory, of_study)
    for phase, spent in result.seconds.items():
        yield Reading("mergesearch_phase_seconds", spent, {**of_study, "phase": phase})
    encoding = result.seconds.get("encode", math.inf)
    if 0 < encoding < math.inf:
        yield Reading("mergesearch_tokens_per_second", result.tokens / encoding, of_worker)
