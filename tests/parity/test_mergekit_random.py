"""Agreement with mergekit's in-memory API of the methods that draw masks, and of RAM, Arcee Fusion and NearSwap.

mergekit computes in the dtype of its inputs. So its float64 result is the exact one, ours is that but for a few
float32 units of the terms, and rounded once where the target is bfloat16. Its own float32 result differs as little.

Of random masks, mergekit's come from torch's generator and ours from a hash. Its masks are read off its results,
where no rescale is asked for and one weight alone is not 0, and given to our kernel in place of our draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mergesearch.merging import CHUNK_ELEMENTS, get_method
from mergesearch.merging.kernel import Part, Site, Workspace
from mergesearch.merging.statistics import Statistics
from tests.parity.against_mergekit import Model, in_dtype, ours

mergekit = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed (extra: parity)")

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
BASE = "a_retriever"


def assert_exact_but_for_rounding(
    merged: Model, exact: Mapping[str, torch.Tensor], models: Mapping[str, Model], growth: float
) -> None:
    """Within some float32 units of growth · Σ|xᵢ|, then half a unit of the dtype."""
    for name, tensor in merged.items():
        size = torch.stack([model[name].double().abs() for model in models.values()]).sum(0)
        slack = 4 * torch.finfo(torch.float32).eps * growth * size
        if tensor.dtype != torch.float32:
            slack = slack + 0.51 * torch.finfo(tensor.dtype).eps * exact[name].double().abs()
        off = (tensor.double() - exact[name].double()).abs()
        assert (off <= slack).all(), f"{name} is off by {off.max():.3g}, {(off / slack).max():.3g} times what it may be"


def check(
    models: Mapping[str, Model], method: str, coefficients: Mapping[str, Any], dtype: torch.dtype, growth: float = 1.0
) -> None:
    """Our merge in `dtype` is mergekit's in float64, which its float32 result is nearly as well."""
    chosen = in_dtype(models, list(models), dtype)
    exact = mergekit.merge_state_dicts(
        in_dtype(chosen, list(chosen), torch.float64), method, parameters=coefficients, base=BASE
    )
    merged = ours(chosen, method, coefficients, BASE)
    assert_exact_but_for_rounding(merged, exact, chosen, growth)
    if dtype == torch.float32:
        theirs = mergekit.merge_state_dicts(chosen, method, parameters=coefficients, base=BASE)
        assert_exact_but_for_rounding(merged, theirs, chosen, 2 * growth)


@pytest.fixture(scope="session")
def changed_in_part(models: dict[str, Model]) -> dict[str, Model]:
    """Models that changed some elements each, as reinforcement learning does: where RAM has something to tell apart."""
    base, *others = models
    generator = torch.Generator().manual_seed(1)
    masks = [{n: torch.rand(t.shape, generator=generator) < 0.4 for n, t in models[base].items()} for _ in others]
    part = {
        name: {n: torch.where(masks[i][n], t, models[base][n]) for n, t in models[name].items()}
        for i, name in enumerate(others)
    }
    return {base: models[base], **part}


@every_dtype
@pytest.mark.parametrize("epsilon", [1e-5, 0.01])
def test_ram(changed_in_part: dict[str, Model], epsilon: float, dtype: torch.dtype) -> None:
    check(changed_in_part, "ram", {"epsilon": epsilon}, dtype)


@every_dtype
@pytest.mark.parametrize(("r", "alpha"), [(0.1, 0.2), (0.5, 3.0)])
def test_ramplus_tl(changed_in_part: dict[str, Model], r: float, alpha: float, dtype: torch.dtype) -> None:
    check(changed_in_part, "ramplus_tl", {"r": r, "alpha": alpha, "epsilon": 1e-5}, dtype, 1 + r * alpha)


@every_dtype
@pytest.mark.parametrize("t", [1e-4, 0.01, 0.03])
def test_nearswap(models: dict[str, Model], t: float, dtype: torch.dtype) -> None:
    check({name: models[name] for name in list(models)[:2]}, "nearswap", {"t": t}, dtype)


RANDOM: dict[str, dict[str, float]] = {
    "dare_linear": {}, "dare_ties": {}, "della": {"epsilon": 0.1}, "della_linear": {"epsilon": 0.1}
}  # fmt: skip
every_random_method = pytest.mark.parametrize("method", RANDOM)


@every_dtype
@every_random_method
@pytest.mark.parametrize("weights", [(1.0, -0.7310586), (0.4142136, 0.3029034)], ids=str)
def test_dense(models: dict[str, Model], method: str, weights: tuple[float, ...], dtype: torch.dtype) -> None:
    """With weights of no simple ratio, so that votes on a sign do not cancel but for rounding, in bfloat16 either."""
    weight = dict(zip(list(models)[1:], weights, strict=True))
    check(models, method, {"weight": weight, "density": 1.0, "lambda": 0.8, **RANDOM[method]}, dtype, 2.0)


@dataclass(frozen=True)
class Drawn(Site):
    """A site whose random numbers were drawn elsewhere: 0 where an element is kept and 1 where it is dropped."""

    kept: Mapping[str, torch.Tensor]

    def uniform(self, source: str, start: int, out: torch.Tensor) -> torch.Tensor:
        dropped = ~self.kept[source].reshape(-1)[start : start + out.numel()]
        return out.copy_(dropped.view(out.shape))


def theirs_seeded(models: Mapping[str, Model], method: str, parameters: Mapping[str, Any]) -> Model:
    torch.manual_seed(3)
    merged: Model = mergekit.merge_state_dicts(models, method, parameters=parameters, base=BASE)
    return merged


@every_random_method
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"])
def test_the_formula_for_the_mask_that_mergekit_drew(
    models: dict[str, Model], method: str, rescale: bool, name: str
) -> None:
    one = {source: {name: model[name].double()} for source, model in models.items()}
    base, *others = one
    coefficients = {"weight": dict(zip(others, (0.6, -1.1), strict=True)), "density": 0.4, "lambda": 1.3} | RANDOM[
        method
    ]
    theirs = theirs_seeded(one, method, coefficients | {"rescale": rescale})[name]
    kept = {}
    for source in others:
        alone = {"weight": {other: float(other == source) for other in others}, "rescale": False, "lambda": 1.0}
        kept[source] = theirs_seeded(one, method, coefficients | alone)[name] != one[base][name]
        assert 0.2 < kept[source].double().mean() < 0.6

    tensors, out = [one[source][name].float() for source in others], torch.empty(theirs.shape)
    part = Part(tensors, one[base][name].float(), 0)
    site = Drawn(
        name, tuple(out.shape), tuple(others), base, 0, lambda: iter([part]), Statistics(), {}, kept
    )  # fmt: skip
    declared, work = get_method(method), Workspace(CHUNK_ELEMENTS, out.device)
    arguments = declared.bind(coefficients, others, {"rescale": rescale}).arguments
    prepared = declared.prepare_for(site, arguments, work)
    merged = declared.call(arguments, part, out, work, site, prepared)
    torch.testing.assert_close(merged.double(), theirs, rtol=0, atol=1e-6)


@every_random_method
def test_masks_are_distributed_as_mergekits(models: dict[str, Model], method: str) -> None:
    """How often an element is kept, by the rank of its magnitude in its row."""
    tensors = {s: {n: t for n, t in model.items() if t.shape == (50, 384)} for s, model in list(models.items())[:2]}
    parameters = {"weight": 1.0, "density": 0.5, "rescale": False} | RANDOM[method]
    coefficients = {name: value for name, value in parameters.items() if name != "rescale"}
    by_rank = []
    for merged in (
        theirs_seeded(tensors, method, parameters),
        ours(tensors, method, coefficients, BASE, rescale=False),
    ):
        shares = []
        for name, tensor in merged.items():
            base, x = (model[name] for model in tensors.values())
            kept = (tensor != base).gather(1, (x - base).abs().argsort(dim=1))
            shares.append(kept.double().view(50, 8, -1).mean((0, 2)))
        by_rank.append(torch.stack(shares).mean(0))
    n = len(merged) * 50 * 384 / 8
    torch.testing.assert_close(*by_rank, rtol=0, atol=5 * (2 * 0.25 / n) ** 0.5)


@every_dtype
def test_arcee_fusion(models: dict[str, Model], dtype: torch.dtype) -> None:
    """Elements of one model or the other: the same ones, but for rounding right at the threshold."""
    two = in_dtype(models, list(models)[:2], dtype)
    exact = mergekit.merge_state_dicts(in_dtype(two, list(two), torch.float64), "arcee_fusion", base=BASE)
    merged = ours(two, "arcee_fusion", {}, BASE)
    base, x = two.values()
    taken = 0
    for name, tensor in merged.items():
        assert ((tensor == base[name]) | (tensor == x[name])).all()
        assert (tensor != exact[name]).sum() <= 1 + 1e-4 * tensor.numel(), name
        taken += int((tensor != base[name]).sum())
    assert 0.01 < taken / sum(t.numel() for t in base.values()) < 0.5
