"""Agreement with mergekit's in-memory API, on all-MiniLM-L6-v2 where it is installed and on its shapes otherwise.

Both sides compute float32 sums, in another order and with other roundings: mergekit divides Σ wx by Σ w, we
divide the weights. That is worth a few units in the last place and no more. In bfloat16, a last float32 unit decides
for sums half-way between two bfloat16 numbers, which are common; and mergekit's task arithmetic rounds after every
step, so there we show whose result is nearer to the exact one.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from tests.parity.against_mergekit import Model, in_dtype, ours

mergekit = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra: parity)")


def assert_same_sum(
    merged: Model, expected: Mapping[str, torch.Tensor], terms: Mapping[str, float], models: Mapping[str, Model]
) -> None:
    """Equal but for the rounding of sums: some float32 units of Σ|term|, then one unit of the dtype."""
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == expected[name].dtype
        size = sum(abs(factor) * models[model][name].double().abs() for model, factor in terms.items())
        slack = 4 * torch.finfo(torch.float32).eps * torch.as_tensor(size)
        if tensor.dtype != torch.float32:
            slack = slack + torch.finfo(tensor.dtype).eps * expected[name].double().abs()
        off = (tensor.double() - expected[name].double()).abs()
        assert (off <= slack).all(), f"{name} is off by {off.max():.3g}, {(off / slack).max():.3g} times what it may be"


def check_linear(models: Mapping[str, Model], weights: tuple[float, ...], dtype: torch.dtype, normalize: bool) -> None:
    chosen = in_dtype(models, list(models)[: len(weights)], dtype)
    weight = dict(zip(chosen, weights, strict=True))
    theirs = mergekit.merge_state_dicts(chosen, "linear", parameters={"weight": weight, "normalize": normalize})
    merged = ours(chosen, "linear", {"weight": weight}, None, normalize=normalize)
    total = sum(weights) if normalize else 1.0
    assert_same_sum(merged, theirs, {name: w / total for name, w in weight.items()}, chosen)


def check_task_arithmetic(models: Mapping[str, Model], weights: tuple[float, ...], scale: float) -> None:
    chosen = in_dtype(models, list(models)[: len(weights) + 1], torch.float32)
    base, *others = chosen
    coefficients = {"weight": dict(zip(others, weights, strict=True)), "lambda": scale}
    theirs = mergekit.merge_state_dicts(chosen, "task_arithmetic", parameters=coefficients, base=base)
    merged = ours(chosen, "task_arithmetic", coefficients, base)
    terms = {name: scale * w for name, w in zip(others, weights, strict=True)}
    assert_same_sum(merged, theirs, {**terms, base: 1 + sum(map(abs, terms.values()))}, chosen)


WEIGHTS = [(0.5, 0.5), (0.3, 0.9), (1.4, -0.4), (0.0, 1.0), (0.2, 0.3, 0.5), (2.0, 1.0, -0.5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_linear(models: dict[str, Model], weights: tuple[float, ...], dtype: torch.dtype, normalize: bool) -> None:
    check_linear(models, weights, dtype, normalize)


@pytest.mark.parametrize("weights", [(1.0,), (0.4,), (0.5, 0.5), (1.0, -0.7)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3, -0.5])
def test_task_arithmetic(models: dict[str, Model], weights: tuple[float, ...], scale: float) -> None:
    check_task_arithmetic(models, weights, scale)


def test_full_size(full_size: dict[str, Model]) -> None:
    """Word embeddings take many chunks, the first layer one for each tensor."""
    parts = {
        name: {n: t for n, t in model.items() if "embeddings" in n or "layer.0." in n}
        for name, model in full_size.items()
    }
    check_linear(parts, (0.3, 0.9), torch.float32, True)
    check_task_arithmetic(parts, (0.4, 0.7), 0.8)


def test_task_arithmetic_bfloat16_is_nearer_to_the_exact_merge(models: dict[str, Model]) -> None:
    """mergekit rounds task vectors, weights and sums to bfloat16; we round the result, to half a unit."""
    chosen = in_dtype(models, list(models), torch.bfloat16)
    base, *others = chosen
    weight = dict(zip(others, (0.3, 0.6), strict=True))
    theirs = mergekit.merge_state_dicts(chosen, "task_arithmetic", parameters={"weight": weight}, base=base)
    merged = ours(chosen, "task_arithmetic", {"weight": weight}, base)
    ours_off = theirs_off = 0.0
    for name, tensor in merged.items():
        deltas = {m: chosen[m][name].double() - chosen[base][name].double() for m in others}
        exact = chosen[base][name].double() + sum(weight[m] * delta for m, delta in deltas.items())
        torch.testing.assert_close(tensor.double(), exact, rtol=2**-8, atol=1e-6)
        ours_off += float((tensor.double() - exact).abs().sum())
        theirs_off += float((theirs[name].double() - exact).abs().sum())
    assert ours_off < theirs_off
