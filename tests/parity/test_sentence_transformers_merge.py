"""Merges against `SentenceTransformer.merge`, which calls mergekit on whole models, for the methods that need no luck.

Tiny models, all tensors merged. Both compute in float32, mergekit's angles included: 2e-6 of the largest element, and
embeddings, which are of length 1, to 1e-5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.against_mergekit import Model, ours
from tests.tiny_models import make_tiny, make_variant

pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra: parity)")

NAMES = ["retriever", "domain", "expert"]
CASES: list[tuple[str, int, str | None, dict[str, Any]]] = [
    ("linear", 3, None, {"weight": [0.6, 0.3, 0.1]}),
    ("slerp", 2, None, {"t": 0.3}),
    ("nuslerp", 2, None, {"weight": [0.6, 0.2]}),
    ("multislerp", 3, None, {"weight": [0.6, 0.3, 0.1]}),
    ("karcher", 3, None, {}),
    ("task_arithmetic", 3, "retriever", {"weight": [0.6, 0.3], "lambda": 0.7}),
    ("ties", 3, "retriever", {"weight": [0.6, 0.3], "density": 0.5}),
    ("model_stock", 3, "retriever", {}),
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("models")
    first = make_tiny("bert", folder / NAMES[0], n_layers=2)
    folders: list[Path] = [first]
    folders += [make_variant(first, folder / name, seed=i, scale=0.1) for i, name in enumerate(NAMES[1:], 1)]
    return {
        name: SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        for name, folder in zip(NAMES, folders, strict=True)
    }


@pytest.mark.parametrize(("method", "n", "base", "parameters"), CASES, ids=[case[0] for case in CASES])
def test_merge(loaded: dict[str, Any], method: str, n: int, base: str | None, parameters: dict[str, Any]) -> None:
    from sentence_transformers import SentenceTransformer

    models = {name: loaded[name] for name in NAMES[:n]}
    reference = None if base is None else models[base]
    theirs = SentenceTransformer.merge(list(models.values()), method, base_model=reference, parameters=parameters)

    states: dict[str, Model] = {name: dict(model.state_dict()) for name, model in models.items()}
    weighted = [name for name in models if name != base]
    coefficients = {k: dict(zip(weighted, v, strict=True)) if k == "weight" else v for k, v in parameters.items()}
    merged = ours(states, method, coefficients, base)

    expected = dict(theirs.state_dict())
    for name, tensor in merged.items():
        assert (tensor - expected[name]).abs().max() <= 2e-6 * expected[name].abs().max(), name
    texts = ["graph search", "the effect of vitamin on heart cells"]
    embeddings = theirs.encode(texts, convert_to_tensor=True, show_progress_bar=False)
    theirs.load_state_dict(merged)
    assert (theirs.encode(texts, convert_to_tensor=True, show_progress_bar=False) - embeddings).abs().max() < 1e-5
    assert not torch.equal(embeddings, loaded[NAMES[0]].encode(texts, convert_to_tensor=True, show_progress_bar=False))
