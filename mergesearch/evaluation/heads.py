"""The last layer of a model, computed in fp32 whatever the model's dtype, and only for the outputs that are read.

In half precision most pairs of a query would have one of a few hundred scores. Weights are read where they lie, so what
is overwritten in place counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import linear

from mergesearch.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Sequence


def classes_in_fp32(model: Any) -> None:
    """From now on the classes' layer of a model for sequence classification puts out fp32.

    Raises:
        EvaluationError: the model ends in no such layer.
    """
    wanted = model.config.num_labels
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == wanted]
    if not layers:
        raise EvaluationError(f"{type(model).__name__} does not end in a linear layer of {wanted} outputs.")
    _in_fp32(layers[-1])


def tokens_in_fp32(model: Any, ids: Sequence[int]) -> None:
    """From now on a language model puts out logits of these tokens alone, in their order, in fp32.

    Raises:
        EvaluationError: the model ends in no linear layer over the vocabulary.
    """
    _in_fp32(_vocabulary(model), list(ids))


def vocabulary_in_fp32(model: Any) -> None:
    """From now on a language model puts out fp32 logits of all tokens.

    Raises:
        EvaluationError: the model ends in no linear layer over the vocabulary.
    """
    _in_fp32(_vocabulary(model))


def _vocabulary(model: Any) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise EvaluationError(f"{type(model).__name__} does not end in a linear layer over the vocabulary.")
    return head


def _in_fp32(layer: nn.Linear, rows: list[int] | None = None) -> None:
    def forward(hidden: Tensor) -> Tensor:
        read = slice(None) if rows is None else rows
        bias = None if layer.bias is None else layer.bias[read].float()
        return linear(hidden.float(), layer.weight[read].float(), bias)

    layer.forward = forward  # type: ignore[method-assign, assignment]
