"""Agreement with mergekit's merges on spheres, in float32 and bfloat16.

Both follow the same formulas: mergekit takes norms and dot products in the dtype it is given (slerp in float32, by
chunks), we take them in float64. We agree with mergekit in float64 to 2e-7 of the largest element, a rounding or two,
and with mergekit in float32 to 2e-6; to 4e-5 for columns of two elements, whose float32 angles near zero are that far
off. In bfloat16 mergekit rounds unit vectors and sums on the way for every method but slerp, so there we show whose
result is nearer to the exact one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parity.against_mergekit import Model, in_dtype, ours

mergekit = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra: parity)")

A, B, C = "a_retriever", "b_domain", "c_expert"

CASES: list[tuple[str, list[str], str | None, dict[str, Any], dict[str, Any]]] = [
    *[("slerp", [A, B], None, {"t": t}, {}) for t in (0.0, 0.3, 0.5, 1.0)],
    ("nuslerp", [A, B], None, {"weight": {A: 1.0, B: 3.0}}, {}),
    ("nuslerp", [A, B], None, {"weight": {A: 1.5, B: -0.5}}, {}),
    ("nuslerp", [A, B], None, {"weight": {A: 1.0, B: 3.0}}, {"flatten": False}),
    ("nuslerp", [A, B], None, {"weight": {A: 1.0, B: 3.0}}, {"flatten": False, "row_wise": True}),
    ("nuslerp", [A, B, C], A, {"weight": {B: 1.0, C: 0.5}}, {}),
    ("nuslerp", [A, B, C], A, {"weight": {B: 1.0, C: 0.5}}, {"flatten": False}),
    ("multislerp", [A, B, C], None, {"weight": {A: 1.0, B: 2.0, C: 0.5}}, {}),
    ("multislerp", [A, B, C], None, {"weight": {A: 0.3, B: 0.2, C: 0.1}}, {"normalize_weights": False}),
    ("multislerp", [A, B, C], A, {"weight": {B: 1.0, C: 0.5}}, {}),
    ("karcher", [A, B, C], None, {}, {}),
    ("karcher", [A, B], None, {}, {"max_iter": 3.0, "tol": 1e-3}),
    ("model_stock", [A, B, C], A, {}, {}),
    ("model_stock", [A, B, C], A, {}, {"filter_wise": True}),
    ("passthrough", [B], None, {"scale": 0.7}, {}),
]
IDS = [f"{method}-{i}" for i, (method, *_) in enumerate(CASES)]


def theirs(models: dict[str, Model], method: str, base: str | None, parameters: dict[str, Any]) -> Model:
    renamed = {f"nuslerp_{k}" if k in ("flatten", "row_wise") else k: v for k, v in parameters.items()}
    renamed |= {"max_iter": int(parameters["max_iter"])} if "max_iter" in parameters else {}
    reference = next(iter(models)) if method == "slerp" else base
    merged: Model = mergekit.merge_state_dicts(models, method, parameters=renamed, base=reference)
    return merged


@pytest.fixture(scope="session")
def related(models: dict[str, Model]) -> dict[str, Model]:
    """The models with task vectors that agree in part, as those of fine-tuned models do."""
    half = {n: (t + models[B][n]) / 2 for n, t in models[C].items()}
    return {A: models[A], B: models[B], C: half}


@pytest.mark.parametrize(("method", "names", "base", "coefficients", "options"), CASES, ids=IDS)
def test_float32(
    related: dict[str, Model],
    method: str,
    names: list[str],
    base: str | None,
    coefficients: dict[str, Any],
    options: dict[str, Any],
) -> None:
    chosen = in_dtype(related, names, torch.float32)
    exact = theirs(in_dtype(chosen, names, torch.float64), method, base, {**coefficients, **options})
    expected = theirs(chosen, method, base, {**coefficients, **options})
    drawn = {**coefficients, "source": 0} if method == "passthrough" else coefficients
    for name, tensor in ours(chosen, method, drawn, base, **options).items():
        for reference, tolerance in ((exact, 2e-7), (expected, 4e-5 if "row_wise" in options else 2e-6)):
            off, largest = (tensor - reference[name]).abs().max(), reference[name].abs().max()
            assert off <= tolerance * largest, f"{name} is off by {off:.3g}"


@pytest.mark.parametrize(("method", "names", "base", "coefficients", "options"), CASES, ids=IDS)
def test_bfloat16_is_no_farther_from_the_exact_merge(
    related: dict[str, Model],
    method: str,
    names: list[str],
    base: str | None,
    coefficients: dict[str, Any],
    options: dict[str, Any],
) -> None:
    chosen = in_dtype(related, names, torch.bfloat16)
    exact = theirs(in_dtype(chosen, names, torch.float64), method, base, {**coefficients, **options})
    expected = theirs(chosen, method, base, {**coefficients, **options})
    drawn = {**coefficients, "source": 0} if method == "passthrough" else coefficients
    ours_off = theirs_off = 0.0
    for name, tensor in ours(chosen, method, drawn, base, **options).items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.double(), exact[name], rtol=2**-8, atol=1e-5)
        ours_off += float((tensor.double() - exact[name]).abs().sum())
        theirs_off += float((expected[name].double() - exact[name]).abs().sum())
    assert ours_off <= theirs_off * (1 + 1e-6)


def test_slerp_at_full_size(full_size: dict[str, Model]) -> None:
    """11.7 million elements, over which plain float32 norms would be off by 5.6e-4, and mergekit's are by some 5e-6."""
    parts = {s: {n: t for n, t in full_size[s].items() if "word_embeddings" in n} for s in (A, B)}
    expected = theirs(parts, "slerp", None, {"t": 0.4})
    for name, tensor in ours(parts, "slerp", {"t": 0.4}, None).items():
        assert (tensor - expected[name]).abs().max() <= 1e-5 * tensor.abs().max()
