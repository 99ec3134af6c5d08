"""Models with heads: their layouts are what the loaded models have, and sources with other heads or none fit them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mergesearch.errors import SourceError
from mergesearch.sources.alignment import align, check_sources
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.layout import (
    HEAD,
    Head,
    Layout,
    canonical_parameters,
    find_decoder_layers,
    find_layers,
    lowest_layer,
    read_layout,
    span,
)
from mergesearch.sources.weights import read_tensors
from tests.tiny_models import RERANKERS, make_tiny, tiny_reranker

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

CLASSES: dict[Head, str] = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "causal_lm": "AutoModelForCausalLM",
}
HEADS: dict[str, Head] = {
    "classification": "sequence_classification",
    "seq2seq": "seq2seq_lm",
    "causal": "causal_lm",
}
CASES = [(kind, HEADS[shape.head]) for kind, shape in RERANKERS.items()] + [("llama", HEADS["causal"])]
N_LAYERS, N_DECODER_LAYERS = 3, 2

# Written out by hand from the architectures: what stands after the base model.
HEAD_PARTS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {f"classifier.{part}.{p}" for part in ("dense", "out_proj") for p in ("weight", "bias")},
    "xlm-roberta": {f"classifier.{part}.{p}" for part in ("dense", "out_proj") for p in ("weight", "bias")},
    "modernbert": {"head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"},
    "distilbert": {f"{part}.{p}" for part in ("pre_classifier", "classifier") for p in ("weight", "bias")},
    "t5": set(),  # one table is embeddings and head
    "mt5": {"lm_head.weight"},
    "llama": {"score.weight"},
    "qwen3": set(),
    "llama causal_lm": {"lm_head.weight"},
}


def make(kind: str, head: Head, folder: Path, seed: int = 0) -> Path:
    config = {"num_decoder_layers": N_DECODER_LAYERS} if head == "seq2seq_lm" else {}
    short = next(name for name, long in HEADS.items() if long == head)
    return tiny_reranker(kind, folder, seed=seed, n_layers=N_LAYERS, head=short, config=config)


def load(folder: Path, head: Head) -> PreTrainedModel:
    return getattr(transformers, CLASSES[head]).from_pretrained(folder)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: " ".join(case))
def case(request: pytest.FixtureRequest) -> tuple[str, Head]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(case: tuple[str, Head], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(*case, tmp_path_factory.mktemp("heads") / case[0])


def test_the_layout_is_what_the_loaded_model_has(case: tuple[str, Head], folder: Path) -> None:
    layout, model = read_layout(folder, head=case[1]), load(folder, case[1])
    parameters = canonical_parameters(model)
    assert list(layout.parameters) == list(parameters)
    assert {n: p.shape for n, p in layout.parameters.items()} == {n: tuple(p.shape) for n, p in parameters.items()}
    assert {id(p) for p in parameters.values()} == {id(p) for p in model.parameters()}
    prefix = "" if case[1] == "seq2seq_lm" else f"{model.base_model_prefix}."
    state = {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()}
    assert state.keys() == {*layout.parameters, *layout.tied, *layout.buffers}
    for alias, name in layout.tied.items():
        assert state[alias].data_ptr() == state[name].data_ptr()


def test_places(case: tuple[str, Head], folder: Path) -> None:
    layout = read_layout(folder, head=case[1])
    decodes = case[1] == "seq2seq_lm"
    kind = " ".join(case) if case == ("llama", "causal_lm") else case[0]
    assert set(layout.names(HEAD)) == HEAD_PARTS[kind]
    assert (layout.n_layers, layout.n_decoder_layers) == (N_LAYERS, N_DECODER_LAYERS if decodes else 0)
    decoder = [f"decoder.{i}.{part}" for i in range(N_DECODER_LAYERS) for part in ("attention", "mlp", "norms")]
    found = [place for place in layout.places if place.startswith("decoder.")]
    assert found == ([*decoder, "decoder.final_norm"] if decodes else [])
    assert layout.places[0] == "embeddings"
    assert (layout.places[-1] == HEAD) == bool(HEAD_PARTS[kind])
    assert all(lowest_layer(place) == float("inf") for place in (*found, HEAD))
    for name, parameter in layout.parameters.items():
        assert parameter.place.startswith("decoder.") == name.startswith("decoder.")


def test_the_encoder_part_is_the_bare_encoder(case: tuple[str, Head], folder: Path) -> None:
    whole, bare = read_layout(folder, head=case[1]), read_layout(folder)
    encoder = {n: p for n, p in bare.parameters.items() if n in whole.parameters}
    assert set(bare.parameters) - set(encoder) == set(bare.names("pooler")) - set(encoder)
    assert all(whole.parameters[name] == parameter for name, parameter in encoder.items())
    assert (whole.n_layers, whole.layers_path) == (bare.n_layers, bare.layers_path)
    assert (whole.word_embeddings, whole.vocab_size, whole.hidden_size) == (
        bare.word_embeddings,
        bare.vocab_size,
        bare.hidden_size,
    )


def test_layers_of_a_loaded_model_are_the_layouts(case: tuple[str, Head], folder: Path) -> None:
    layout, model = read_layout(folder, head=case[1]), load(folder, case[1])
    path, layers = find_layers(model)
    assert path.endswith(layout.layers_path)
    assert len(layers) == N_LAYERS
    decoder = find_decoder_layers(model)
    assert (decoder and len(decoder[1])) == (layout.n_decoder_layers or None)


def test_every_tensor_is_read_under_its_name(case: tuple[str, Head], folder: Path) -> None:
    layout, model = read_layout(folder, head=case[1]), load(folder, case[1])
    checkpoint = Checkpoint.open("m", folder)
    names = align(checkpoint, layout)
    read = read_tensors(checkpoint, names)
    for name, parameter in canonical_parameters(model).items():
        assert torch.equal(read[name], parameter), name


def test_output_embeddings_are_one_with_the_input_embeddings_where_files_hold_equal_ones(tmp_path: Path) -> None:
    folder = make("mt5", "seq2seq_lm", tmp_path / "mt5")
    assert "lm_head.weight" in read_layout(folder, head="seq2seq_lm").parameters
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["shared.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    layout = read_layout(folder, head="seq2seq_lm")
    assert layout.tied["lm_head.weight"] == "shared.weight"
    assert list(layout.parameters) == list(canonical_parameters(load(folder, "seq2seq_lm")))


def test_a_layout_with_a_head_needs_no_weights(tmp_path: Path) -> None:
    whole = make("t5", "seq2seq_lm", tmp_path / "whole")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert read_layout(bare, head="seq2seq_lm") == read_layout(whole, head="seq2seq_lm")


def test_an_architecture_without_such_a_head(tmp_path: Path) -> None:
    folder = make_tiny("bert", tmp_path / "bert")
    with pytest.raises(SourceError, match="no AutoModelForSeq2SeqLM for models of type 'bert'"):
        read_layout(folder, head="seq2seq_lm")


def test_norms_of_embeddings_are_embeddings(tmp_path: Path) -> None:
    """BART's halves list the norm of their embeddings after their blocks; it acts before them."""
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, num_labels=1,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    layout = read_layout(tmp_path, head="sequence_classification")
    assert {"encoder.layernorm_embedding.weight", "decoder.layernorm_embedding.weight"} <= {*layout.names("embeddings")}
    assert (layout.n_layers, layout.n_decoder_layers) == (2, 1)


def test_spans_are_read_by_people() -> None:
    assert span(["decoder.0.attention", "decoder.0.mlp", "decoder.0.norms", "decoder.final_norm"]) == (
        "decoder.0, decoder.final_norm"
    )


def checked(template: Path, head: Head, merged: set[str] | None = None, **others: Path) -> dict[str, dict[str, str]]:
    """The names that are read of every source, of which all layers are merged unless it is said what."""
    layout = read_layout(template, head=head)
    places = {p for p in layout.places if p.startswith("layer.")} if merged is None else merged
    opened = {name: Checkpoint.open(name, folder) for name, folder in {"template": template, **others}.items()}
    return check_sources(opened, template="template", layout=layout, merged_places=dict.fromkeys(opened, places))


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "modernbert", "distilbert"])
def test_domain_models_and_bases_fit_a_cross_encoder(kind: str, tmp_path: Path) -> None:
    template = make(kind, "sequence_classification", tmp_path / "cross")
    domain = tiny_reranker(kind, tmp_path / "mlm", seed=1, n_layers=N_LAYERS, head="mlm")
    base = tiny_reranker(kind, tmp_path / "base", seed=2, n_layers=N_LAYERS, head="auto")
    layout = read_layout(template, head="sequence_classification")
    merged = {p for p in layout.places if p not in ("pooler", "head")}
    read = checked(template, "sequence_classification", merged, domain=domain, base=base)
    assert read["template"].keys() == layout.parameters.keys()
    expected = {n for n, p in layout.parameters.items() if p.place in merged}
    assert read["domain"].keys() == read["base"].keys() == expected


def test_the_halves_of_t5_fit(tmp_path: Path) -> None:
    template = make("t5", "seq2seq_lm", tmp_path / "whole")
    encoder = tiny_reranker("t5", tmp_path / "encoder", seed=1, n_layers=N_LAYERS, head="auto")
    read = checked(template, "seq2seq_lm", {"embeddings", "layer.0.mlp", "final_norm"}, encoder=encoder)
    assert "shared.weight" in read["encoder"]
    with pytest.raises(SourceError, match=r"lacks .* decoder.*`groups.decoder: template`"):
        checked(template, "seq2seq_lm", {"decoder.0.mlp"}, encoder=encoder)


@pytest.mark.parametrize(
    ("kind", "head", "saved_as", "advice"),
    [
        ("bert", "sequence_classification", "mlm", "classifier.weight.*`mergesearch train-reranker`"),
        ("bert", "sequence_classification", "auto", "lacks 2 tensors .*classifier.weight"),
        ("llama", "sequence_classification", "causal", "score.weight.*`mergesearch train-reranker`"),
        ("t5", "seq2seq_lm", "auto", "decoder.*saved with decoder and head"),
        ("llama", "causal_lm", "auto", "lm_head.weight.*saved with it"),
    ],
)
def test_a_template_without_its_head(kind: str, head: Head, saved_as: str, advice: str, tmp_path: Path) -> None:
    template = tiny_reranker(kind, tmp_path / "m", n_layers=N_LAYERS, head=saved_as)
    with pytest.raises(SourceError, match=advice):
        checked(template, head)


def test_a_template_without_the_pooler_that_its_head_reads(tmp_path: Path) -> None:
    template = make("bert", "sequence_classification", tmp_path / "m")
    tensors = {n: t for n, t in load_file(template / "model.safetensors").items() if ".pooler." not in n}
    save_file(tensors, template / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=r"pooler.dense.weight.*`mergesearch train-reranker`"):
        checked(template, "sequence_classification")


def test_sources_need_heads_only_where_heads_are_merged(tmp_path: Path) -> None:
    template = make("bert", "sequence_classification", tmp_path / "cross")
    domain = tiny_reranker("bert", tmp_path / "mlm", seed=1, n_layers=N_LAYERS, head="mlm")
    other = tiny_reranker("bert", tmp_path / "nli", seed=2, n_layers=N_LAYERS, config={"num_labels": 3})
    checked(template, "sequence_classification", domain=domain, other=other)
    with pytest.raises(SourceError, match=r"lacks 2 .*classifier.weight.*`groups.head: template`"):
        checked(template, "sequence_classification", {HEAD}, domain=domain)
    with pytest.raises(SourceError, match=r"\[3, 32\], the template's is \[1, 32\].*`groups.head: template`"):
        checked(template, "sequence_classification", {HEAD}, other=other)


def test_a_decoder_of_another_depth(tmp_path: Path) -> None:
    template = make("t5", "seq2seq_lm", tmp_path / "m")
    deeper = tiny_reranker("t5", tmp_path / "deeper", n_layers=N_LAYERS, head="seq2seq")
    with pytest.raises(SourceError, match="has 3 decoder layers, the template has 2"):
        checked(template, "seq2seq_lm", {"layer.0.mlp", "decoder.0.mlp"}, deeper=deeper)
    checked(template, "seq2seq_lm", {"layer.0.mlp"}, deeper=deeper)


def test_a_head_under_a_wrapper(tmp_path: Path) -> None:
    """Models that were saved inside another module have its name before all names."""
    folder = make("bert", "sequence_classification", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    save_file({f"inner.{n}": t for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    layout: Layout = read_layout(folder, head="sequence_classification")
    names = align(Checkpoint.open("m", folder), layout)
    assert names.keys() == layout.parameters.keys()
    assert names["classifier.bias"] == "inner.classifier.bias"
    assert names["pooler.dense.bias"] == "inner.bert.pooler.dense.bias"
