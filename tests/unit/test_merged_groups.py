"""What groups do to weights: every part of the model has the coefficients that its group was given, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from mergesearch.study import Study, load_study
from mergesearch.workers.evaluator import open_merger
from tests.tiny_models import KINDS
from tests.tiny_studies import make_study

if TYPE_CHECKING:
    from pathlib import Path

Weights = dict[str, torch.Tensor]


def merge(study: Study, params: dict[str, float]) -> Weights:
    encoder, merger = open_merger(study.evaluator_spec())
    merger.apply(study.recipe(params))
    return {name: tensor.detach().clone() for name, tensor in encoder.parameters.items()}


def of_source(study: Study, source: str) -> Weights:
    encoder, merger = open_merger(study.unmerged_spec(test=False))
    merger.apply(study.source_alone(source))
    return {name: tensor.detach().clone() for name, tensor in encoder.parameters.items()}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_attention_mlp_and_norms_are_merged_apart(kind: str, tmp_path: Path) -> None:
    tiny = make_study(tmp_path, kind=kind)
    tiny.change("merge", "groups", to={"segments": 2, "components": True, "embeddings": "own"})
    study = load_study(tiny.file)
    names = [f"segment_{i}_{part}" for i in (1, 2) for part in ("attention", "mlp", "norms")]
    assert [d.name for d in study.space.dimensions] == ["alpha.embeddings", *(f"alpha.{name}" for name in names)]
    shares = {"attention": 1.0, "mlp": 0.0, "norms": 0.5}
    merged = merge(study, {"alpha.embeddings": 1.0} | {f"alpha.{n}": shares[n.rpartition("_")[2]] for n in names})
    retriever, domain = of_source(study, "retriever"), of_source(study, "domain")
    for name, parameter in study.layout.parameters.items():
        outside = {"embeddings": 1.0, "final_norm": 0.5, "pooler": 1.0}
        share = outside.get(parameter.place, shares.get(parameter.place.rpartition(".")[2], -1.0))
        torch.testing.assert_close(merged[name], torch.lerp(domain[name], retriever[name], share), rtol=1e-6, atol=1e-7)


def test_a_gradient_falls_over_the_layers(tmp_path: Path) -> None:
    tiny = make_study(tmp_path, n_layers=3)
    tiny.change("merge", "groups", to={"per_layer": True, "components": True, "embeddings": "own", "pooler": "own"})
    tiny.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "knots": 2}})
    study = load_study(tiny.file)
    assert {a.name: a.params for a in study.anchors()} == {
        "retriever alone": {"alpha.knot_1": 1, "alpha.knot_2": 1},
        "domain alone": {"alpha.knot_1": 0, "alpha.knot_2": 0},
        "uniform average": {"alpha.knot_1": 0.5, "alpha.knot_2": 0.5},
    }
    merged = merge(study, {"alpha.knot_1": 1.0, "alpha.knot_2": 0.5})
    retriever, domain = of_source(study, "retriever"), of_source(study, "domain")
    share = {"embeddings": 1.0, "layer.0": 1.0, "layer.1": 0.75, "layer.2": 0.5, "pooler": 0.5}
    for name, parameter in study.layout.parameters.items():
        expected = torch.lerp(domain[name], retriever[name], share[".".join(parameter.place.split(".")[:2])])
        torch.testing.assert_close(merged[name], expected, rtol=1e-6, atol=1e-7)


def test_gradients_and_their_depths_are_score_relevant(tmp_path: Path) -> None:
    tiny = make_study(tmp_path, n_layers=4)
    tiny.change("merge", "groups", to={"boundaries": [1]})
    tiny.change("merge", "coefficients", to={"alpha": {"low": 0, "high": 1, "knots": 2}})
    one = load_study(tiny.file).space.to_dict()
    other = load_study(tiny.change("merge", "groups", to={"boundaries": [2]}).file).space.to_dict()
    assert one != other
