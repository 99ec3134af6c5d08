"""Adapters that are read as whole models, and the message that every unusable one has."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch.errors import SourceError
from mergesearch.sources.adapter import AdaptedCheckpoint, open_source
from mergesearch.sources.adapter_config import read_adapter_config
from mergesearch.sources.checkpoint import Checkpoint
from tests.tiny_adapters import ALPHA, RANK, make_adapter, write_config
from tests.tiny_models import make_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUERY = "encoder.layer.0.attention.self.query"
KEY = f"base_model.model.{QUERY}"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("bert", tmp_path_factory.mktemp("base") / "tiny", n_layers=2)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter", modules=["query", "value"])


def change_config(folder: Path, **entries: Any) -> None:
    write_config(folder, {**json.loads((folder / "adapter_config.json").read_text()), **entries})


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def refusal(base: Path, adapter: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_source("psi", base, adapter)
    assert all(p.where == f"source 'psi' ({adapter})" for p in caught.value.problems)
    return caught.value


def test_is_the_base_plus_scaled_products(base: Path, adapter: Path) -> None:
    source, plain = open_source("psi", base, adapter), Checkpoint.open("base", base)
    parts = load_file(adapter / WEIGHTS)
    assert isinstance(source, AdaptedCheckpoint)
    assert len(source.low_rank) == 4
    assert source.tensors.keys() == plain.tensors.keys()
    assert (source.folder, source.config, source.n_bytes) == (plain.folder, plain.config, plain.n_bytes)
    for name, tensor in source.read_many(plain.tensors).items():
        expected = plain.read(name).double()
        if name in source.low_rank:
            key = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = parts[f"{key}.lora_A.weight"].double(), parts[f"{key}.lora_B.weight"].double()
            expected = expected + ALPHA / RANK * b @ a
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)


def test_half_precision_bases_are_changed_in_float32(base: Path, adapter: Path, tmp_path: Path) -> None:
    low = make_tiny("bert", tmp_path / "low", n_layers=2, dtype=torch.bfloat16)
    source = open_source("psi", low, adapter)
    weight = f"{QUERY}.weight"
    parts = load_file(adapter / WEIGHTS)
    product = parts[f"{KEY}.lora_B.weight"] @ parts[f"{KEY}.lora_A.weight"]
    assert source.tensors[weight].dtype == source.read(weight).dtype == torch.float32
    assert source.tensors[weight].n_bytes == 2 * source.base.tensors[weight].n_bytes  # type: ignore[attr-defined]
    exact = Checkpoint.open("low", low).read(weight).float() + ALPHA / RANK * product
    torch.testing.assert_close(source.read(weight), exact, rtol=1e-6, atol=1e-6)
    assert not torch.equal(source.read(weight), source.read(weight).bfloat16().float())
    assert source.tensors["encoder.layer.0.output.dense.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("trained", "stored"), [("", "bert."), ("bert.", ""), ("bert.", "bert."), ("model.bert.", "bert.")]
)
def test_prefixes_of_either_side(trained: str, stored: str, base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    tensors = {f"{stored}{name}": t for name, t in load_file(base / "model.safetensors").items()}
    save_file({**tensors, "cls.predictions.bias": torch.zeros(3)}, other / "model.safetensors")
    adapter = make_adapter(base, tmp_path / "adapter", modules=["query"], prefix=trained)
    source = open_source("psi", other, adapter)
    assert isinstance(source, AdaptedCheckpoint)
    assert [*source.low_rank] == [f"{stored}encoder.layer.{i}.attention.self.query.weight" for i in range(2)]


def test_names_of_early_bert_checkpoints(base: Path, adapter: Path, tmp_path: Path) -> None:
    early = shutil.copytree(base, tmp_path / "early")
    raw = load_file(base / "model.safetensors")
    renamed = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for n, t in raw.items()}
    save_file(renamed, early / "model.safetensors")
    bias = torch.ones(32)
    change_tensors(adapter, lambda t: t.update({"base_model.model.embeddings.LayerNorm.bias": bias}))
    source = open_source("psi", early, adapter)
    assert torch.equal(source.read("embeddings.LayerNorm.beta"), bias)
    assert source.tensors.keys() == renamed.keys()


def test_heads_are_left_out(base: Path, adapter: Path) -> None:
    head = {
        "base_model.model.classifier.weight": torch.zeros(2, 32),
        "base_model.model.lm_head.lora_A.weight": torch.zeros(RANK, 32),
        "base_model.model.lm_head.lora_B.weight": torch.zeros(500, RANK),
    }
    change_tensors(adapter, lambda t: t.update(head))
    source = open_source("psi", base, adapter)
    assert isinstance(source, AdaptedCheckpoint)
    assert len(source.low_rank) == 4


def test_weights_as_bin(base: Path, adapter: Path) -> None:
    expected = open_source("psi", base, adapter).read(f"{QUERY}.weight")
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    assert torch.equal(open_source("psi", base, adapter).read(f"{QUERY}.weight"), expected)
    torch.save({"w": torch.zeros(1), "state": {"epoch": 1}}, adapter / "adapter_model.bin")
    assert "holds more than tensors" in str(refusal(base, adapter))


def test_content_hash_names_adapter_and_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    hashes = [open_source("psi", base, adapter).content_hash, Checkpoint.open("psi", base).content_hash]
    assert open_source("other", shutil.copytree(base, tmp_path / "copy"), adapter).content_hash == hashes[0]
    hashes.append(open_source("psi", make_tiny("bert", tmp_path / "b", n_layers=2, seed=1), adapter).content_hash)
    change_tensors(adapter, lambda t: t[f"{KEY}.lora_A.weight"].add_(1))
    hashes.append(open_source("psi", base, adapter).content_hash)
    change_config(adapter, lora_alpha=7)
    hashes.append(open_source("psi", base, adapter).content_hash)
    assert len(set(hashes)) == 5


def test_unknown_names(base: Path, adapter: Path) -> None:
    with pytest.raises(SourceError, match=r"source .psi. has no tensor .no\.such."):
        open_source("psi", base, adapter).read("no.such")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"has no weights \(adapter_model.safetensors or"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:3000]), "is truncated: 3,000 bytes"),
    "garbage": (lambda f: (f / WEIGHTS).write_bytes(b"garbage" * 99), "corrupt or no safetensors file"),
    "config that is no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "is not valid JSON"),
    "config that is a list": (lambda f: write_config(f, []), "holds a list, expected an object"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), r"holds no adapter \(no adapter_config.json\)"),
    "IA3": (lambda f: change_config(f, peft_type="IA3"), "adapter of type 'IA3'; what can be applied is LoRA"),
    "QA-LoRA": (lambda f: change_config(f, use_qalora=True), "use_qalora is True, and what that does .* is not known"),
    "a setting of the future": (lambda f: change_config(f, twist={"by": 2}), "twist is {'by': 2}, and what that does"),
    "PiSSA": (lambda f: change_config(f, init_lora_weights="pissa"), "'pissa', which changed the base's weights"),
    "rank of 0": (lambda f: change_config(f, r=0), "r: input should be greater than 0, found 0"),
    "pattern": (lambda f: change_config(f, alpha_pattern={"(": 1}), r"alpha_pattern: '\(' is no regular expression"),
    "other rank": (lambda f: change_config(f, r=8), r"A \[4, 32\] and B \[32, 4\]; adapter_config.json says rank 8"),
    "A and B of other ranks": (
        lambda f: change_tensors(f, lambda t: t.update({f"{KEY}.lora_A.weight": torch.zeros(3, 32)})),
        r"A \[3, 32\] and B \[32, 4\]; adapter_config.json says rank 4",
    ),
    "half a module": (
        lambda f: change_tensors(f, lambda t: t.pop(f"{KEY}.lora_A.weight")),
        "query' has lora_B; adapter_config.json asks for lora_A, lora_B",
    ),
    "DoRA without magnitudes": (
        lambda f: change_config(f, use_dora=True),
        "has lora_A, lora_B; adapter_config.json asks for lora_A, lora_B, lora_magnitude_vector",
    ),
    "magnitudes of another size": (
        lambda f: (
            change_config(f, use_dora=True),
            change_tensors(
                f,
                lambda t: t.update(
                    {n.replace("A.weight", "magnitude_vector"): torch.ones(9) for n in t if "lora_A" in n}
                ),
            ),
        ),
        r"has \[9\] magnitudes, expected \[32\]",
    ),
    "unknown target": (
        lambda f: change_tensors(f, lambda t: t.update({n.replace("query", "qwery"): t.pop(n) for n in [*t]})),
        "module 'encoder.layer.0.attention.self.qwery', of which the base has no weight",
    ),
    "convolution": (
        lambda f: change_tensors(f, lambda t: t.update({f"{KEY}.lora_A.weight": torch.zeros(4, 32, 1)})),
        "is a convolution",
    ),
    "unknown part": (
        lambda f: change_tensors(f, lambda t: t.update({f"{KEY}.lora_diag": torch.zeros(4)})),
        "lora_diag' is no part of LoRA, rsLoRA or DoRA",
    ),
    "integers": (
        lambda f: change_tensors(f, lambda t: t.update({f"{KEY}.lora_A.weight": torch.zeros(4, 32).char()})),
        "is torch.int8, expected floating point",
    ),
    "no matrices": (
        lambda f: save_file({"base_model.model.pooler.dense.bias": torch.zeros(32)}, f / WEIGHTS),
        r"changes no module of .* \(its modules: none\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_applied_is_refused_by_name(damage: str, base: Path, adapter: Path) -> None:
    inflict, message = DAMAGES[damage]
    inflict(adapter)
    error = refusal(base, adapter)
    with pytest.raises(SourceError, match=message):
        raise error


def test_adapters_of_other_bases_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    wide = make_tiny("bert", tmp_path / "wide", n_layers=2, config={"hidden_size": 40})
    error = refusal(wide, adapter)
    assert len(error.problems) == 4
    assert "changes [32, 32] weights, the base's are [40, 40]: is this its base?" in str(error)
    shallow = make_tiny("bert", tmp_path / "shallow", n_layers=1)
    assert "'encoder.layer.1.attention.self.query', of which the base has no weight" in str(refusal(shallow, adapter))
    stranger = make_tiny("mistral", tmp_path / "mistral", n_layers=2)
    assert "changes no module of" in str(refusal(stranger, adapter))


def test_of_many_problems_some_are_listed(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "a", modules=["query", "key", "value", "dense"], r=5)
    error = refusal(base, adapter)
    assert len(error.problems) == 6
    assert error.problems[-1].message == "… and 8 more modules do not fit."


def test_the_base_that_an_adapter_names(base: Path, adapter: Path) -> None:
    assert read_adapter_config(adapter).locate_base() == base
    change_config(adapter, base_model_name_or_path=base.name, revision="main")
    assert read_adapter_config(adapter).locate_base(base.parent) == base
    with pytest.raises(SourceError, match=r"base 'tiny' .* was not found: .*adapter_of: SOURCE"):
        read_adapter_config(adapter).locate_base(adapter)
    change_config(adapter, base_model_name_or_path=None)
    with pytest.raises(SourceError, match=r"does not say which model .*adapter_of: SOURCE"):
        read_adapter_config(adapter).locate_base()
