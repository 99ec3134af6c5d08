"""RE-AdaptIR: a retriever and a knowledge adapter on one base (Fleshman and Van Durme 2024)."""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.methods.task_arithmetic import task_arithmetic
from mergesearch.merging.registry import OneShot, Range, Tensors, Workspace, merge_method
from mergesearch.recipe import CoefficientValue


def alone(source: int, _: int) -> dict[str, CoefficientValue]:
    """The retriever is the first, the adapted base the second."""
    return {"alpha": float(source == 1), "beta": float(source == 0)}


@merge_method(
    title="RE-AdaptIR",
    paper="https://arxiv.org/abs/2406.14764",
    alone=alone,
    min_sources=2,
    max_sources=2,
    properties=("zero_task_vectors", "linear_map"),
    one_shot=OneShot("the paper's α, and the whole of Δ"),
)
def re_adapt(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    alpha: Annotated[float, Range("Strength of the knowledge adapter Ψ.")] = 0.5,
    beta: Annotated[float, Range("Strength of what the retriever learned, Δ.")] = 1.0,
) -> torch.Tensor:
    """Θ + αΨ + βΔ: Θ is the base, Δ the template (or the first of the two sources) less Θ, Ψ the other less Θ."""
    result: torch.Tensor = task_arithmetic.kernel(tensors, base, out, work, weight=(beta, alpha))
    return result
