"""What a worker builds from its spec."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch.errors import CollectionError, MergeError, SourceError
from mergesearch.resolving import load_study
from mergesearch.workers import opening
from mergesearch.workers.evaluator import TrialEvaluator
from mergesearch.workers.opening import open_merger
from tests.tiny_models import make_tiny
from tests.tiny_studies import TinyStudy, copy_study, make_study


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyStudy:
    return make_study(tmp_path_factory.mktemp("study"))


def test_tokens_of_large_corpora_are_on_disk_and_leave_nothing_behind(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_study(tiny.file)
    recipe = study.recipe(next(study.space.grid()))
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "cache"))
    small = TrialEvaluator(study.evaluator_spec())
    monkeypatch.setattr(opening, "LARGE_CORPUS", 29)
    large = TrialEvaluator(study.evaluator_spec())
    mapped = [isinstance(e.pipeline.collections[0].documents.ids, np.memmap) for e in (small, large)]
    assert mapped == [False, True]
    assert list((tmp_path / "cache").iterdir()) == []
    assert large.evaluate(recipe).value == small.evaluate(recipe).value


def test_a_large_corpus_without_a_place_for_its_tokens_says_so(
    tiny: TinyStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    spec = load_study(tiny.file).evaluator_spec()
    monkeypatch.setenv("MERGESEARCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(opening, "LARGE_CORPUS", 29)
    with pytest.raises(CollectionError, match="MERGESEARCH_CACHE"):
        TrialEvaluator(spec)


def test_only_what_recipes_may_need_is_read(tiny: TinyStudy, tmp_path: Path) -> None:
    spec = load_study(copy_study(tiny, tmp_path).file).evaluator_spec()
    weights = tmp_path / "domain" / "model.safetensors"
    tensors = load_file(weights)
    broken = {n: t if n.startswith("encoder.layer.1.") else torch.full_like(t, math.nan) for n, t in tensors.items()}
    save_file(broken, weights)
    open_merger(replace(spec, merged_places={**spec.merged_places, "domain": frozenset({"layer.1"})}))
    with pytest.raises(SourceError, match="holds NaN"):
        open_merger(spec)


def test_a_source_that_no_recipe_needs_is_not_opened(tiny: TinyStudy, tmp_path: Path) -> None:
    study = load_study(copy_study(tiny, tmp_path).file)
    needed, missing = study.source_alone("retriever"), study.source_alone("domain")
    spec = study.evaluator_spec()
    shutil.rmtree(tmp_path / "domain")
    _, merger = open_merger(replace(spec, merged_places={"retriever": spec.merged_places["retriever"]}))
    merger.apply(needed)
    with pytest.raises(MergeError, match="needs tensors of source 'domain' that were not given"):
        merger.apply(missing)


def test_sources_of_all_dtypes_are_merged_in_float32(tmp_path: Path) -> None:
    """Stored in three dtypes, multiplied and added up without ever being rounded to one of them."""
    dtypes = {"single": torch.float32, "half": torch.float16, "brain": torch.bfloat16}
    study = make_study(tmp_path)
    for i, (name, dtype) in enumerate(dtypes.items()):
        make_tiny("bert", tmp_path / name, n_layers=2, seed=i, dtype=dtype)
    study.change("sources", to={name: name for name in dtypes}).change("merge", "template", to="single")
    loaded = load_study(study.change("merge", "coefficients", to={"weight": {"low": 0, "high": 1}}).file)
    shares = {"single": 0.5, "half": 0.375, "brain": 0.125}
    encoder, merger = open_merger(loaded.evaluator_spec())
    merger.apply(loaded.recipe_of({g: {"weight": shares} for g in ("segment_1", "segment_2")}))
    stored = {name: load_file(tmp_path / name / "model.safetensors") for name in dtypes}
    for name, parameter in encoder.parameters.items():
        if name.startswith("encoder."):
            assert [stored[s][name].dtype for s in dtypes] == [*dtypes.values()]
            exact = sum(share * stored[s][name].double() for s, share in shares.items())
            torch.testing.assert_close(parameter.double(), exact, rtol=1e-6, atol=1e-7)
