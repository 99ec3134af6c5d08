"""Model Stock (Jang et al. 2024, https://arxiv.org/abs/2403.19522): how far to go from the base to the average.

The ratio t = N c / (1 + (N − 1) c) follows from the mean cosine c between the task vectors, so the method has no
coefficient of its own; λ, which scales t, is there to be searched.
"""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.combine import add_task_vectors
from mergesearch.merging.gram import cosines, gram, row_gram
from mergesearch.merging.registry import Doc, OneShot, Range, Site, Tensors, Workspace, merge_method

SINGULAR = 1e-6
"""Where 1 + (N − 1) c is smaller, task vectors cancel and say nothing of t, which is then 0."""


def whole_gram(site: Site, filter_wise: bool) -> torch.Tensor | None:
    """Inner products of whole task vectors; those of rows are found on the way."""
    return None if filter_wise else gram(site)


@merge_method(
    title="Model Stock",
    paper="https://arxiv.org/abs/2403.19522",
    by_rows=True,
    prepare=whole_gram,
    min_sources=2,
    properties=("symmetric", "zero_task_vectors"),
    parity="to 2e-7 of the largest element in float64, 2e-6 in float32; cosines of tiny task vectors are not shrunk",
    one_shot=OneShot("the paper, which has no coefficient"),
)
def model_stock(
    tensors: Tensors,
    base: torch.Tensor,
    out: torch.Tensor,
    work: Workspace,
    prepared: torch.Tensor | None,
    lambda_: Annotated[float, Range("Factor of the ratio t; 1 is the paper's.")] = 1.0,
    filter_wise: Annotated[bool, Doc("A ratio for every row, and not one for the whole tensor.")] = False,
) -> torch.Tensor:
    """The base + λ t (average − base)."""
    cosine = cosines(row_gram(tensors, base) if prepared is None else prepared)
    n = len(tensors)
    mean = (cosine.sum((0, 1)) - torch.einsum("ii...->...", cosine)) / (n * (n - 1))
    below = 1 + (n - 1) * mean
    share = torch.where(below.abs() < SINGULAR, 0.0, lambda_ * mean / below)  # t / N
    return add_task_vectors(base, tensors, [share if filter_wise else float(share)] * n, out, work)
