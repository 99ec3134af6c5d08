"""Matrix product and top-k in torch, on whatever device the embeddings are on."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mergesearch.evaluation.backends import SearchBackend, backend

if TYPE_CHECKING:
    from collections.abc import Iterator


@backend("torch")
class TorchBackend(SearchBackend):
    """Needs one fp32 matrix of queries × documents of the chunk at a time."""

    def open(self, documents_CE: Tensor) -> None:
        """See the base class."""
        self._documents_EC = documents_CE.T

    def best(self, queries_QE: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """See the base class."""
        with _full_precision():
            scores_QC = queries_QE @ self._documents_EC
        scores, columns = torch.topk(scores_QC, n, dim=1)
        return scores, columns


@contextmanager
def _full_precision() -> Iterator[None]:
    """The process may have allowed TF32 or bf16 products for its own reasons; scores must not use them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
