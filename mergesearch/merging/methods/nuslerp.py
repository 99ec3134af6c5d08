"""NuSLERP: slerp with a weight per source, of whole tensors, rows or columns, of weights or of task vectors.

As in mergekit (https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md), whose `nuslerp_row_wise` goes
along the first dimension: what it calls rows are columns of the stored matrix.
"""

from __future__ import annotations

from typing import Annotated

import torch

from mergesearch.merging.combine import add_task_vectors, normalized, weighted_sum
from mergesearch.merging.gram import arc, column_gram, cosines, gram, row_gram
from mergesearch.merging.registry import EQUAL, Doc, OneShot, PerSource, Range, Site, Tensors, Workspace, merge_method

PARALLEL = 1e-16
"""Below this squared sine two vectors are parallel."""


def angles(site: Site, flatten: bool, row_wise: bool) -> torch.Tensor | None:
    """Inner products of whole tensors (as which vectors count) or of columns; those of rows are found on the way."""
    if flatten or len(site.shape) < 2:
        return gram(site)
    return column_gram(site) if row_wise else None


@merge_method(
    title="NuSLERP",
    paper="https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md",
    by_rows=True,
    prepare=angles,
    min_sources=2,
    max_sources=2,
    properties=("one_hot", "symmetric"),
    parity="to 2e-7 of the largest element in float64, 2e-6 in float32; weights that cancel are refused",
    one_shot=OneShot("equal weights", {"weight": EQUAL}),
)
def nuslerp(
    tensors: Tensors,
    out: torch.Tensor,
    work: Workspace,
    prepared: torch.Tensor | None,
    weight: Annotated[PerSource, Range("Share of each source; the shares say where on the arc.")],
    flatten: Annotated[bool, Doc("Take a tensor as one vector, and not each of its rows.")] = True,
    row_wise: Annotated[bool, Doc("Where `flatten` is off: vectors along the first dimension (columns).")] = False,
    base: torch.Tensor | None = None,
) -> torch.Tensor:
    """Slerp at t = w₁ / (w₀ + w₁), of task vectors where there is a base; a lerp where the two are parallel."""
    cosine = cosines(row_gram(tensors, base) if prepared is None else prepared)[0, 1]
    ends = arc(cosine, normalized(weight)[1], 1 - cosine.square() <= PARALLEL)
    factors = [float(c) for c in ends] if cosine.dim() == 0 else ends
    if base is None:
        return weighted_sum(tensors, factors, out)
    return add_task_vectors(base, tensors, factors, out, work)
