"""Reading one weight file: safetensors, or a `.bin` that holds tensors and nothing else.

No pickle is run: `.bin` files go through `torch.load(weights_only=True)` and are refused when they hold more.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
"""Names of dtypes in safetensors headers, as the format defines them, to torch's."""

_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header describes it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def n_bytes(self) -> int:
        """Size in bytes as stored."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_header(file: Path) -> tuple[dict[str, TensorInfo], list[str]]:
    """What the file holds, by raw name, and what is wrong with it; one of the two is empty or partial."""
    with file.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            return {}, [f"{file.name} is a Git LFS pointer and not the file itself. Run `git lfs pull`."]
    return _safetensors_header(file) if file.suffix == ".safetensors" else _bin_header(file)


def read_tensors(file: Path, raw_names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Memory-mapped tensors of a file whose header was read before, on the CPU, in their stored dtype."""
    names = list(raw_names)
    if not names:
        return {}
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in names}
    loaded = _load_bin(file)
    return {name: loaded[name] for name in names}


def _safetensors_header(file: Path) -> tuple[dict[str, TensorInfo], list[str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            views = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            described = {name: (tuple(view.get_shape()), view.get_dtype()) for name, view in views.items()}
    except (SafetensorError, OSError) as error:
        return {}, [_diagnose(file, error)]
    problems = [
        f"{file.name}: tensor {name!r} has dtype {dtype}, which cannot be merged."
        for name, (_, dtype) in described.items()
        if dtype not in _DTYPES
    ]
    infos = {
        name: TensorInfo(shape, getattr(torch, _DTYPES[dtype]), file)
        for name, (shape, dtype) in described.items()
        if dtype in _DTYPES
    }
    if not described:
        problems.append(f"{file.name} holds no tensors.")
    return infos, problems


def _diagnose(file: Path, error: Exception) -> str:
    """Why the library refused a safetensors file: how long it is against what its header promises."""
    size = file.stat().st_size
    again = "Download or copy it again."
    with file.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        if size >= 8 and n_header > size - 8 and stream.read(1) == b"{":
            return f"{file.name} is truncated: {size:,} bytes, its header alone takes {n_header + 8:,}. {again}"
        stream.seek(8)
        try:
            header: Any = json.loads(stream.read(n_header)) if n_header <= size else None
            end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, TypeError, AttributeError, LookupError):
            return f"{file.name} is corrupt or no safetensors file ({error}). {again}"
    expected = 8 + n_header + end
    if size < expected:
        return f"{file.name} is truncated: {size:,} bytes, its header promises {expected:,}. {again}"
    return f"{file.name} is corrupt: {size:,} bytes, its header promises {expected:,} ({error}). {again}"


def _bin_header(file: Path) -> tuple[dict[str, TensorInfo], list[str]]:
    convert = "Use a checkpoint in safetensors, or save the plain state dict again."
    try:
        loaded = _load_bin(file)
    except pickle.UnpicklingError as error:
        what = _refused_global(error)
        return {}, [f"{file.name} holds more than tensors ({what}), and pickles are never run. {convert}"]
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        first = str(error).strip().split("\n")[0]
        return {}, [f"{file.name} is truncated or corrupt ({first}). Download or copy it again."]
    if not isinstance(loaded, dict):
        return {}, [f"{file.name} holds a {type(loaded).__name__}, expected tensors by name. {convert}"]
    others = {str(name): type(value).__name__ for name, value in loaded.items() if not _is_tensor(value)}
    if others:
        listed = ", ".join(f"{name!r} is a {kind}" for name, kind in list(others.items())[:5])
        return {}, [f"{file.name} holds more than tensors: {listed}. {convert}"]
    infos = {str(name): TensorInfo(tuple(t.shape), t.dtype, file) for name, t in loaded.items()}
    return infos, [] if infos else [f"{file.name} holds no tensors."]


def _load_bin(file: Path) -> Any:
    """The content of a `.bin`: mapped where the format allows it (files since torch 1.6), read otherwise."""
    with file.open("rb") as stream:
        mapped = stream.read(4) == b"PK\x03\x04"
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _refused_global(error: pickle.UnpicklingError) -> str:
    """The class that weights_only refused, out of torch's long message."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return named[0].split(" was not an allowed")[0].split("WeightsUnpickler error: ")[-1] if named else "a pickle"
