"""Studies of methods and strategies beyond the segment grid, from study file to winner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import make_variant
from tests.tiny_studies import TinyStudy, copy_study, make_study, mergesearch

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "slerp": (
        {"method": "slerp", "coefficients": {"t": {"values": [0, 0.5, 1]}}},
        {"strategy": "random", "trials": 3, "enqueue": ["sources"]},
        {"retriever alone", "domain's layers"},
    ),
    "model_stock": (
        {"method": "model_stock", "base": "retriever", "coefficients": {"lambda": {"values": [0, 1], "tie": "all"}}},
        {"strategy": "grid"},
        {"lambda=0", "lambda=1"},
    ),
    "passthrough": (
        {"method": "passthrough", "coefficients": {"source": {"segment_1": "domain", "segment_2": {"values": [0, 1]}}}},
        {"strategy": "grid", "enqueue": []},
        {"source.segment_2=retriever", "source.segment_2=domain"},
    ),
    "greedy_soup": (
        {"method": "linear", "coefficients": {"weight": {"low": 0, "high": 1, "tie": "groups"}}},
        {"strategy": "greedy_soup", "enqueue": ["sources"]},
        {"retriever alone", "domain's layers", "other's layers"},
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    study = make_study(tmp_path_factory.mktemp("tiny"))
    make_variant(study.folder / "retriever", study.folder / "other", seed=5)
    return study


def test_sources_that_changed_places_are_another_study(tiny: TinyStudy, tmp_path: Path) -> None:
    """A choice is recorded as a source's place, so the places are part of what was searched."""
    tiny = copy_study(tiny, tmp_path / "places")
    content = tiny.content()
    content |= {"study": "places", "storage": f"sqlite:///{tmp_path}/study.db", "search": {"strategy": "grid"}}
    content["merge"] = {
        "template": "retriever", "groups": {"segments": 1},
        "method": "passthrough", "coefficients": {"source": {"values": ["retriever", "domain", "other"]}},
    }  # fmt: skip
    content["sources"] = {"retriever": "retriever", "domain": "domain", "other": "other"}
    tiny.write(content)
    assert mergesearch("run", tiny.file, "--trials", "2").code == 0
    content["sources"] = {"retriever": "retriever", "other": "other", "domain": "domain"}
    tiny.write(content)
    ran = mergesearch("run", tiny.file)
    assert ran.code != 0
    assert "sources (order)" in ran.err


@pytest.mark.parametrize("name", CASES)
def test_a_study_runs_to_its_end(tiny: TinyStudy, tmp_path: Path, name: str) -> None:
    merge, search, labels = CASES[name]
    content = tiny.content()
    content |= {"study": name, "storage": f"sqlite:///{tmp_path}/study.db", "search": search}
    content["merge"] = {"template": "retriever", "groups": {"segments": 2}, **merge}
    if name in ("model_stock", "greedy_soup"):
        content["sources"] = {**content["sources"], "other": "other"}
    tiny.write(content)
    planned = json.loads(mergesearch("plan", tiny.file, "-f", "json").out)["trials"]
    ran = mergesearch("run", tiny.file)
    assert ran.code == 0, ran.err
    trials = json.loads(mergesearch("status", tiny.file, "-f", "json").out)["trials"]
    assert labels <= {t["label"] for t in trials}
    assert {t["state"] for t in trials} == {"complete"}
    assert len(trials) == planned
    assert mergesearch("best", tiny.file).code == 0
