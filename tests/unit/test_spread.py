"""A model on several devices: the same embeddings through accelerate's hooks, and a map that headers foretell.

There is no GPU here: several times `cpu` takes the same path, and `meta` shows where parameters would go.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from mergesearch.errors import MemoryPlanError, StudyFileError
from mergesearch.evaluation.encoder import open_encoder
from mergesearch.evaluation.loading import load
from mergesearch.evaluation.spread import devices, largest_share, numbers, spread
from mergesearch.resolving import load_study
from mergesearch.sources.layout import lowest_layer, read_layout
from mergesearch.workers.evaluator import TrialEvaluator
from tests.tiny_models import KINDS, tiny_models
from tests.tiny_studies import TinyStudy, make_study, mergesearch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = [f"{'search model ' * (i % 5)}query {i}" for i in range(20)]
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return tiny_models(tmp_path_factory.mktemp("models"), n_layers=4)


@every_kind
def test_hooks_change_no_embedding(tiny: Callable[[str], Path], kind: str) -> None:
    whole, parts = open_encoder(tiny(kind)), open_encoder(tiny(kind), gpus=3)
    assert all(hasattr(layer, "_hf_hook") for layer in parts.layers)
    plan = whole.plan(TEXTS, "document", batch_tokens=128)
    assert torch.equal(parts.encode(plan), whole.encode(plan))


@every_kind
def test_every_parameter_goes_where_the_headers_say(tiny: Callable[[str], Path], kind: str) -> None:
    layout = read_layout(tiny(kind))
    model = load(tiny(kind), torch.float32, "cpu", False)
    spread(model, layout, ("cpu", "meta"))
    there = {name: p.device.type for name, p in model[0].model.named_parameters()}
    expected = {name: ("cpu", "meta")[number] for name, number in numbers(layout, 2).items()}
    assert there == {name: device for name, device in expected.items() if name in there}
    assert set(there.values()) == {"cpu", "meta"}


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_devices_hold_neighbouring_layers_and_about_as_much(tiny: Callable[[str], Path], n: int) -> None:
    layout = read_layout(tiny("bert"))
    number = numbers(layout, n)
    by_layer = sorted((lowest_layer(layout.parameters[name].place), i) for name, i in number.items())
    assert [i for _, i in by_layer] == sorted(i for _, i in by_layer)
    assert by_layer[0] == (-1, 0)
    assert by_layer[-1][1] == n - 1
    sizes = {name: torch.Size(p.shape).numel() for name, p in layout.parameters.items()}
    total = sum(sizes.values())
    layer = sum(size for name, size in sizes.items() if layout.parameters[name].place.startswith("layer.0"))
    embeddings = sum(size for name, size in sizes.items() if layout.parameters[name].place == "embeddings")
    held = max(sum(size for name, size in sizes.items() if number[name] == i) for i in range(n))
    assert held <= max(total / n + layer, embeddings + layer)
    assert largest_share(layout, n) == held / total


def test_a_study_scores_the_same_on_several_devices(tmp_path: Path) -> None:
    study = load_study(make_study(tmp_path).change("search", "strategy", to={"name": "grid"}).file)
    spec = study.evaluator_spec()
    one, several = TrialEvaluator(spec), TrialEvaluator(replace(spec, gpus=2))
    assert one.model.reuse is not None
    assert several.model.reuse is None  # states of one device are of no use on another
    for point in list(study.space.grid())[:4]:
        recipe = study.recipe(point)
        assert several.evaluate(recipe).value == one.evaluate(recipe).value
        assert several.merger.fingerprint() == one.merger.fingerprint()


def test_a_winner_that_was_spread_is_exported_and_scored_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    tiny = make_study(tmp_path).change("workers", to={"gpus": 2, "threads": 1}).change("search", "trials", to=3)
    ran = mergesearch("run", tiny.file)
    assert ran.code == 0, ran.err
    exported = mergesearch("export", tiny.file, "--out", tmp_path / "merged", "--trial", 2)
    assert exported.code == 0, exported.err
    parts, whole = open_encoder(tmp_path / "merged", gpus=2), open_encoder(tmp_path / "merged")
    assert parts.parameters.keys() == whole.parameters.keys()
    assert all(torch.equal(parts.parameters[name], p) for name, p in whole.parameters.items())


def test_more_gpus_than_there_are_is_an_error() -> None:
    assert devices("cpu", 2) == ("cpu", "cpu")
    assert devices("cuda:1", 1) == ("cuda:1",)
    with pytest.raises(MemoryPlanError, match=r"workers.gpus: 512.* this process sees"):
        devices("cuda", 512)


def test_what_several_gpus_cannot_have_is_said_beforehand(tmp_path: Path) -> None:
    tiny: TinyStudy = make_study(tmp_path)
    tiny.change("workers", to={"gpus": 2, "device": "cpu", "prefix_cache": "1GB"})
    with pytest.raises(StudyFileError) as caught:
        load_study(tiny.file)
    assert f"{tiny.line_of('gpus:')}: a model is spread over the first 2 CUDA GPUs" in str(caught.value)
    assert f"{tiny.line_of('prefix_cache:')}: hidden states are not reused" in str(caught.value)
