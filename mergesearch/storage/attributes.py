"""What of a trial becomes user attributes in Optuna's tables, where its tools show them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mergesearch.errors import StorageError
from mergesearch.evaluation.objectives import EXCESS_ATTR, OBJECTIVES_ATTR, VALUE_ATTR, Judgement
from mergesearch.evaluation.result import ESTIMATE_ATTR, FUSION_ATTR, GPU_SECONDS_ATTR, QUERIES_ATTR, TrialResult
from mergesearch.storage.engine import redact_urls

MOST_CHARACTERS = 4_000
"""The most that one user attribute may weigh as JSON: every reader of the study loads all of them."""
SHORT = MOST_CHARACTERS // 8
"""Characters of free text, such as the reason of a failure."""


def checked(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """User attributes that may be stored. Trials are found again by them, so words in them stay as they are.

    Raises:
        StorageError: one is too large.
    """
    clean: dict[str, Any] = redact_urls(attrs)
    for key, value in clean.items():
        if len(json.dumps(value)) > MOST_CHARACTERS:
            raise StorageError(f"the trial attribute {key!r} is larger than {MOST_CHARACTERS} characters.")
    return clean


def costs(result: TrialResult) -> dict[str, Any]:
    """What a trial cost, and what it brought back, in short."""
    attributes: dict[str, Any] = {f"seconds_{phase}": round(float(s), 6) for phase, s in result.seconds.items()}
    attributes["tokens"] = int(result.tokens)
    if result.layer_tokens:
        attributes["layer_tokens"] = int(result.layer_tokens)
    attributes["worker"] = result.worker
    attributes[QUERIES_ATTR] = sum(len(c.query_ids) for c in result.collections)
    attributes["scores"] = {f"{c.metric} {c.collection}": c.mean for c in result.collections}
    if result.looks:
        attributes["looks"] = [asdict(look) for look in result.looks]
    if result.estimate is not None:
        attributes[ESTIMATE_ATTR] = result.estimate
        attributes["stopped_by"] = result.stopped_by
    if result.fusion is not None:
        attributes[FUSION_ATTR] = result.fusion
    if result.out_of_memory:
        attributes["out_of_memory"] = result.out_of_memory
    if result.notes:
        attributes["notes"] = "; ".join(result.notes)[:SHORT]
    return attributes


def held(gpu_seconds: float) -> dict[str, float]:
    """How long workers were held for a trial, times their GPUs."""
    return {GPU_SECONDS_ATTR: round(gpu_seconds, 6)} if gpu_seconds else {}


def judged(judgement: Judgement, value: float) -> dict[str, Any]:
    """Several objectives with the value that they leave no column for, and what guards say."""
    found: dict[str, Any] = {}
    if judgement.objectives:
        found |= {OBJECTIVES_ATTR: dict(judgement.objectives), VALUE_ATTR: value}
    if judgement.excess:
        found[EXCESS_ATTR] = dict(judgement.excess)
    return found
