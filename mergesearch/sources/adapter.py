"""A PEFT adapter as a source: the model that it makes of its base.

Computed in float32, as PEFT merges (peft/tuners/lora/layer.py and dora.py, with which the tests compare):

    LoRA    W' = W + s·B·A                        s = α/r, for rsLoRA α/√r
    DoRA    W' = m · (W + s·B·A) / ‖W + s·B·A‖    a norm and a magnitude m for every output

with W [out, in], A [r, in] and B [out, r]. Embeddings W [V, d] have A [r, V] and B [d, r]: their product is
transposed, and so it is for linear layers that store [in, out] (`fan_in_fan_out`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mergesearch.errors import Problem, SourceError
from mergesearch.sources import weight_files
from mergesearch.sources.adapter_config import AdapterConfig, read_adapter_config
from mergesearch.sources.alignment import EARLY_NAMES
from mergesearch.sources.checkpoint import Checkpoint, file_hash
from mergesearch.sources.locate import ADAPTER_CONFIG, ADAPTER_FILES
from mergesearch.sources.weight_files import TensorInfo

_OUTER = "base_model.model."
"""What PEFT puts before the names of the model that was trained."""
_PART = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?")
_LISTED = 5


@dataclass(frozen=True)
class LowRank:
    """What is done to one weight; `a`, `b` and `magnitude` are names in the adapter's file."""

    a: str
    b: str
    magnitude: str | None
    scale: float
    transposed: bool

    @property
    def parts(self) -> tuple[str, ...]:
        """What is read of the adapter's file."""
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)

    def apply(self, weight: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A new tensor, float32."""
        product = parts[self.b].float() @ parts[self.a].float()
        changed = torch.add(weight.float(), product.T if self.transposed else product, alpha=self.scale)
        if self.magnitude is None:
            return changed
        inputs = 0 if self.transposed else 1
        factors = parts[self.magnitude].float() / torch.linalg.norm(changed, dim=inputs)
        return changed.mul_(factors.unsqueeze(inputs))


@dataclass(frozen=True, eq=False)
class AdaptedCheckpoint(Checkpoint):
    """The model that an adapter makes of its base.

    Names, config and folder are the base's. Tensors that the adapter changes are float32 and made anew by every
    reading; the others are mapped from the base's files, or from the adapter's where it holds them whole.

    Attributes:
        files: the base's, and the adapter's as the last.
        base: the model that the adapter was trained on.
        adapter: the adapter's folder.
        whole: raw names of tensors that the adapter replaces or adds, to their names in its file.
        low_rank: raw names of tensors that the adapter changes, to what is done to them.
        skipped: raw names of parts of a head that the adapter changes and the base's files do not hold.
    """

    base: Checkpoint
    adapter: Path
    whole: Mapping[str, str]
    low_rank: Mapping[str, LowRank]
    skipped: frozenset[str]

    def read_many(self, raw_names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Tensors by raw name, as `Checkpoint.read_many` gives them."""
        names = list(raw_names)
        read = self.base.read_many(name for name in names if name not in self.whole)
        changes = {name: self.low_rank[name] for name in names if name in self.low_rank}
        replaced = {name: self.whole[name] for name in names if name in self.whole}
        needed = {*replaced.values(), *(part for change in changes.values() for part in change.parts)}
        parts = weight_files.read_tensors(self.files[-1], needed)
        read |= {name: parts[part] for name, part in replaced.items()}
        read |= {name: change.apply(read[name], parts) for name, change in changes.items()}
        return {name: read[name] for name in names}

    @property
    def made(self) -> Set[str]:
        """What the adapter changes."""
        return self.low_rank.keys()

    @property
    def left_out(self) -> Set[str]:
        """`skipped`."""
        return self.skipped

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the adapter's two files and the base's content."""
        hashes = (file_hash(self.adapter / ADAPTER_CONFIG), file_hash(self.files[-1]), self.base.content_hash)
        return hashlib.sha256(b"".join(map(bytes.fromhex, hashes))).hexdigest()


def open_source(name: str, folder: Path, adapter: Path | None = None) -> Checkpoint:
    """Read headers and configs; no weight is loaded.

    Args:
        name: what the study file calls the source.
        folder: of the model; of an adapter's base.
        adapter: of the PEFT adapter, if the source is one.

    Raises:
        SourceError: everything that is wrong with the model, or with the adapter: other kinds than LoRA, rsLoRA and
            DoRA, missing or corrupt files, modules that the base has not, other shapes, other ranks than stated.
    """
    base = Checkpoint.open(name, folder)
    if adapter is None:
        return base
    try:
        return _adapt(base, adapter)
    except SourceError as error:
        where = f"source {name!r} ({adapter})"
        raise SourceError([Problem(problem.message, where) for problem in error.problems]) from None


def _adapt(base: Checkpoint, adapter: Path) -> AdaptedCheckpoint:
    config = read_adapter_config(adapter)
    file = next((adapter / name for name in ADAPTER_FILES if (adapter / name).is_file()), None)
    if file is None:
        raise SourceError([f"has no weights ({' or '.join(ADAPTER_FILES)})."])
    stored, problems = weight_files.read_header(file)
    modules, full = _by_kind(stored, problems)
    names = _Names(modules, base)
    if not problems and not names.fit:
        some = ", ".join([*modules][:3]) or "none"
        problems.append(f"changes no module of {base.folder} (its modules: {some}): is this the adapter's base?")
    if problems:
        raise SourceError(problems)
    whole = {raw: key for name, key in full.items() if (raw := names.in_base(name)) is not None}
    tensors = {**base.tensors, **{raw: stored[key] for raw, key in whole.items()}}
    low_rank = {}
    skipped: set[str] = set()
    for module, keys in modules.items():
        raw = names.in_base(f"{module}.weight")
        if raw is None:
            continue
        if raw not in tensors and names.is_new(raw):
            skipped.add(raw)  # of a head that the base's files do not hold
            continue
        found = _misfit(module, {part: stored[key].shape for part, key in keys.items()}, tensors.get(raw), config)
        problems += found
        if not found:
            low_rank[raw] = _low_rank(module, keys, config)
            tensors[raw] = TensorInfo(tensors[raw].shape, torch.float32, file)
    if problems:
        more = len(problems) - _LISTED
        raise SourceError(problems[:_LISTED] + ([f"… and {more} more modules do not fit."] if more > 0 else []))
    files = (*base.files, file)
    return AdaptedCheckpoint(
        base.name, base.folder, base.config, tensors, files, base, adapter, whole, low_rank, frozenset(skipped)
    )


def _misfit(
    module: str, shapes: Mapping[str, tuple[int, ...]], weight: TensorInfo | None, config: AdapterConfig
) -> list[str]:
    """What keeps a module's parts from being applied to the base's weight; nothing or one sentence."""
    if weight is None:
        return [f"changes module {module!r}, of which the base has no weight: is this the adapter's base?"]
    start = _kind(shapes)
    wanted = {f"{start}A", f"{start}B", *(["magnitude_vector"] if config.use_dora else [])}
    if shapes.keys() != wanted:
        there, want = (", ".join(f"lora_{part}" for part in sorted(parts)) for parts in (shapes, wanted))
        return [f"module {module!r} has {there}; {ADAPTER_CONFIG} asks for {want}."]
    a, b = shapes[f"{start}A"], shapes[f"{start}B"]
    rank = config.rank(module)
    if len(a) != 2 or len(b) != 2:
        return [f"module {module!r} is a convolution, to which adapters are not applied here."]
    if a[0] != rank or b[1] != rank:
        return [f"module {module!r} has A {[*a]} and B {[*b]}; {ADAPTER_CONFIG} says rank {rank}."]
    product = (a[1], b[0]) if start or config.fan_in_fan_out else (b[0], a[1])
    if weight.shape != product:
        return [f"module {module!r} changes {[*product]} weights, the base's are {[*weight.shape]}: is this its base?"]
    if shapes.get("magnitude_vector", b[:1]) != b[:1]:
        return [f"module {module!r} has {[*shapes['magnitude_vector']]} magnitudes, expected {[b[0]]}."]
    return []


def _low_rank(module: str, keys: Mapping[str, str], config: AdapterConfig) -> LowRank:
    start = _kind(keys)
    transposed = bool(start) or config.fan_in_fan_out
    return LowRank(keys[f"{start}A"], keys[f"{start}B"], keys.get("magnitude_vector"), config.scale(module), transposed)


def _kind(parts: Container[str]) -> str:
    """What stands before A and B: `embedding_` for an embedding, nothing for a linear layer."""
    return "embedding_" if "embedding_A" in parts else ""


def _by_kind(stored: Mapping[str, TensorInfo], problems: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Module to part (`A`, `embedding_B`, …) to name in the file; and name of a whole tensor to name in the file."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    full = {}
    for key, info in stored.items():
        name = key.removeprefix(_OUTER)
        if not info.dtype.is_floating_point:
            problems.append(f"tensor {key!r} is {info.dtype}, expected floating point.")
        elif part := _PART.fullmatch(name):
            modules[part[1]][part[2]] = key
        elif "lora_" in name or ".token_adapter." in name:
            problems.append(f"tensor {key!r} is no part of LoRA, rsLoRA or DoRA that is known here.")
        else:
            full[name.replace(".base_layer.", ".")] = key
    return dict(modules), full


class _Names:
    """From names in the model that the adapter was trained on to raw names in its base's files.

    One of the two may have a prefix that the other has not: an adapter trained on a model with a head meets the files
    of a bare encoder, or the other way round. The prefix under which most modules match is taken.
    """

    def __init__(self, modules: Iterable[str], base: Checkpoint) -> None:
        self._raw = {_modern(raw): raw for raw in base.tensors}
        prefixes: dict[str, list[str]] = defaultdict(list)
        for name in self._raw:
            for start, end in _cuts(name):
                prefixes[end].append(start)
        votes: Counter[tuple[str, str]] = Counter()
        for module in modules:
            weight = f"{module}.weight"
            votes.update((start, "") for start, end in _cuts(weight) if end in self._raw)
            votes.update(("", start) for start in prefixes.get(weight, ()) if start)
        self.fit = bool(votes)
        best = max(votes, key=lambda pair: (votes[pair], -len("".join(pair))), default=("", ""))
        self._outer, self._inner = best

    def in_base(self, name: str) -> str | None:
        """The raw name, which the base need not have; of a head, which lies outside the encoder, its name as it is.

        None for what lies outside the encoder and is called like a part of it.
        """
        if not name.startswith(self._outer):
            return None if name in self._raw else name
        own = self._inner + name.removeprefix(self._outer)
        return self._raw.get(own, own)

    def is_new(self, raw: str) -> bool:
        """Whether the base's files hold nothing of the outermost part that a raw name belongs to."""
        part = self._inner + raw.removeprefix(self._inner).partition(".")[0]
        return not any(name.startswith(f"{part}.") for name in self._raw)


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """A dotted name in two, in every way, the whole name first: ("", "a.b"), ("a.", "b")."""
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def _modern(raw: str) -> str:
    for today, early in EARLY_NAMES.items():
        if raw.endswith(early):
            return raw.removesuffix(early) + today
    return raw
