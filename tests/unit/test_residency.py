"""Wherever sources are kept, the merge is the same to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mergesearch.merging import METHODS, MergeMethod
from mergesearch.recipe import GroupRecipe, MergeRecipe, SourceRef
from mergesearch.sources.layout import read_layout
from mergesearch.workers.evaluator_spec import EvaluationSettings, EvaluatorSpec
from mergesearch.workers.opening import open_merger
from mergesearch.workers.residency import Residency
from tests.conformance.merging import typical
from tests.tiny_models import make_tiny, make_variant

CASES = [(m, n) for m in METHODS.values() for n in (2, 3) if n == 3 or "linear_map" in m.properties]
every_case = pytest.mark.parametrize(("method", "n_sources"), CASES, ids=[f"{m.name}-{n}" for m, n in CASES])
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sources in bfloat16 and one in float32."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny("bert", folder / "a", n_layers=2)
    for seed, name in enumerate(("b", "c")):
        make_variant(folder / "a", folder / name, seed=seed)
    for name in ("a", "b"):
        file = folder / name / "model.safetensors"
        save_file({n: t.bfloat16() for n, t in load_file(file).items()}, file, metadata={"format": "pt"})
    return {name: folder / name for name in ("a", "b", "c")}


def merged(method: MergeMethod, folders: dict[str, Path], dtype: str, residency: Residency, device: str = "cpu") -> str:
    """Fingerprint of what a worker makes: one place copied, the others merged."""
    names = list(folders)
    base = names[0] if method.needs_base else None
    places = tuple(read_layout(folders["a"]).places)
    spec = EvaluatorSpec(
        folders=folders,
        template="a",
        merged_places=dict.fromkeys(names, frozenset(places)),
        collections=(),
        evaluation=EvaluationSettings(dtype=dtype, device=device),
        residency=residency,
    )
    _, merger = open_merger(spec)
    coefficients = typical(method, [name for name in names if name != base])
    groups = (GroupRecipe("copied", places[:1], copy_from="b"), GroupRecipe("merged", places[1:], None, coefficients))
    sources = tuple(SourceRef(name, name, name) for name in names)
    assert merger.apply(MergeRecipe(method.name, sources, "a", groups, base=base, dtype=dtype)) == ("copied", "merged")
    return merger.fingerprint()


def taken(method: MergeMethod, folders: dict[str, Path], n_sources: int) -> dict[str, Path]:
    """As many of the folders as the method takes, base included, and `n_sources` where it may."""
    n = max(n_sources, method.min_sources + method.needs_base)
    if method.max_sources is not None:
        n = min(n, method.max_sources + method.needs_base)
    return dict(list(folders.items())[:n])


@every_dtype
@every_case
def test_mapped_or_read_into_memory(method: MergeMethod, dtype: str, n_sources: int, folders: dict[str, Path]) -> None:
    some = taken(method, folders, n_sources)
    places: tuple[Residency, ...] = ("auto", "mapped", "device")
    assert len({merged(method, some, dtype, residency) for residency in places}) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every_dtype
@every_case
def test_streamed_to_a_gpu(method: MergeMethod, dtype: str, n_sources: int, folders: dict[str, Path]) -> None:
    some = taken(method, folders, n_sources)
    places: tuple[Residency, ...] = ("auto", "mapped", "pinned", "device")
    assert len({merged(method, some, dtype, residency, "cuda") for residency in places}) == 1
