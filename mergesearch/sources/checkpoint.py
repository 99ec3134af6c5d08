"""A checkpoint on disk: its config, the headers of its weight files, and single tensors on demand."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergesearch.errors import Problem, SourceError
from mergesearch.sources import weight_files
from mergesearch.sources.cache import cache_dir
from mergesearch.sources.locate import WEIGHT_FILES, model_folder
from mergesearch.sources.weight_files import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Set

    import torch

__all__ = ["Checkpoint", "TensorInfo"]

_PACKED = {"int8", "uint8", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2"}
_HASH_CHUNK = 1 << 22
_SETTLED_NS = 2_000_000_000
"""Written longer ago than this, a file cannot change without its time changing too: file systems' clocks are coarse."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that is read and never written.

    Attributes:
        name: what the study file calls the source; messages use it.
        folder: where config.json and the weight files lie.
        config: config.json as it stands.
        tensors: raw names, as the files have them, to shape, dtype and file.
        files: the weight files in the order of the index.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: tuple[Path, ...]

    @classmethod
    def open(cls, name: str, folder: Path) -> Checkpoint:
        """Read config and headers; no weight is loaded (`.bin` files are mapped, not read).

        Raises:
            SourceError: lists everything that is wrong with this checkpoint: no or broken config, no weights,
                missing, truncated or corrupt files, tensors that the index promises and no shard holds,
                objects other than tensors, quantised weights.
        """
        folder = model_folder(folder)
        problems: list[str] = []
        config = _read_config(folder, problems)
        files, promised = _weight_files(folder, problems)
        tensors: dict[str, TensorInfo] = {}
        for file in files:
            found, wrong = weight_files.read_header(file)
            tensors.update(found)
            problems += wrong
        broken = {file.name for file in files if not any(info.file == file for info in tensors.values())}
        for raw, shard in promised.items():
            if raw not in tensors and shard not in broken:
                problems.append(f"the index promises tensor {raw!r} in {shard}, which does not hold it.")
        problems += _quantised(config, tensors)
        if problems:
            raise SourceError([Problem(p, f"source {name!r} ({folder})") for p in problems])
        return cls(name, folder, config, tensors, tuple(files))

    def read(self, raw_name: str) -> torch.Tensor:
        """One tensor on the CPU in its stored dtype, memory-mapped: treat it as read-only.

        Raises:
            SourceError: there is no tensor of this name.
        """
        return self.read_many([raw_name])[raw_name]

    def read_many(self, raw_names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors by raw name, every file opened once.

        They are views of the mapped file: their pages are read when touched, shared by all processes that map
        the same file, and given back by the kernel under pressure instead of counting as memory of their own.

        Raises:
            SourceError: names that this checkpoint does not have.
        """
        names = list(raw_names)
        unknown = [name for name in names if name not in self.tensors]
        if unknown:
            raise SourceError([f"source {self.name!r} has no tensor {name!r}." for name in unknown])
        read: dict[str, torch.Tensor] = {}
        for file in self.files:
            here = [name for name in names if self.tensors[name].file == file]
            read.update(weight_files.read_tensors(file, here))
        return {name: read[name] for name in names}

    @property
    def made(self) -> Set[str]:
        """Raw names of tensors that no file holds as they are, so that they take memory wherever they are kept."""
        return frozenset()

    @property
    def left_out(self) -> Set[str]:
        """Raw names of tensors that the source would change, and of which there is nothing to change."""
        return frozenset()

    @property
    def n_bytes(self) -> int:
        """Size of all tensors together, in bytes as stored."""
        return sum(info.n_bytes for info in self.tensors.values())

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over config.json and the weight files in the order of the index.

        Hashes of files are remembered by path, size and time of change, so a large model is read once.
        """
        digest = hashlib.sha256()
        for file in (self.folder / "config.json", *self.files):
            digest.update(bytes.fromhex(file_hash(file)))
        return digest.hexdigest()


def _read_config(folder: Path, problems: list[str]) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        problems.append("has no config.json.")
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        problems.append(f"config.json is not valid JSON: {error}.")
        return {}
    if not isinstance(config, dict):
        problems.append(f"config.json holds a {type(config).__name__}, expected an object.")
        return {}
    return config


def _weight_files(folder: Path, problems: list[str]) -> tuple[list[Path], dict[str, str]]:
    """The weight files that exist, and for sharded checkpoints the index: raw name to file name."""
    chosen = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if chosen is None:
        there = sorted(p.name for p in folder.glob("*") if p.is_file()) if folder.is_dir() else []
        problems.append(f"has no weights ({' or '.join(WEIGHT_FILES)}); there are: {', '.join(there) or 'no files'}.")
        return [], {}
    if not chosen.name.endswith(".index.json"):
        return [chosen], {}
    try:
        index = json.loads(chosen.read_text(encoding="utf-8"))["weight_map"]
        promised = {str(raw): str(shard) for raw, shard in index.items()}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{chosen.name} is not an index of shards: {type(error).__name__}: {error}.")
        return [], {}
    shards = list(dict.fromkeys(promised.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    problems += [f"{chosen.name} points outside the folder: {shard!r}." for shard in outside]
    missing = [shard for shard in shards if shard not in outside and not (folder / shard).is_file()]
    problems += [f"shard {shard} is missing; {chosen.name} names it. Download it again." for shard in missing]
    gone = {*outside, *missing}
    kept = {raw: shard for raw, shard in promised.items() if shard not in gone}
    return [folder / shard for shard in shards if shard not in gone], kept


def _quantised(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> list[str]:
    advice = "Merging needs unquantised weights: take the original checkpoint, or dequantise and save it."
    settings = config.get("quantization_config") or config.get("compression_config")
    if settings:
        method = settings.get("quant_method", "unnamed method") if isinstance(settings, dict) else settings
        return [f"is quantised ({method}, says config.json). {advice}"]
    packed = [raw for raw, info in tensors.items() if str(info.dtype).removeprefix("torch.") in _PACKED]
    matrices = [raw for raw in packed if len(tensors[raw].shape) > 1]
    if not matrices:
        return []
    first = tensors[matrices[0]]
    return [f"is quantised: {len(matrices)} tensors such as {matrices[0]!r} are {first.dtype}. {advice}"]


def file_hash(file: Path) -> str:
    """SHA-256 of a file in hexadecimal, remembered in the cache folder unless the file has only just been written."""
    state = file.stat()
    key = f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
    remembered = cache_dir() / "file-hashes" / hashlib.sha256(key.encode()).hexdigest()
    try:
        known = remembered.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        known = ""
    if len(known) == 64:
        return known
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK):
            digest.update(chunk)
    found = digest.hexdigest()
    if time.time_ns() - state.st_mtime_ns < _SETTLED_NS:
        return found
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=remembered.parent, delete=False, encoding="ascii") as draft:
            draft.write(found)
        os.replace(draft.name, remembered)  # noqa: PTH105 (draft.name is a str; several processes may write)
    except OSError:  # a cache that cannot be written costs time and nothing else
        pass
    return found
