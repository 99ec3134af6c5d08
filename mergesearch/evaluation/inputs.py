"""Planned batches as the tensors that a model takes: padded, or unpadded for FlashAttention, and on its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from mergesearch.evaluation.tokens import Plan

Features = dict[str, Any]
"""What sentence-transformers' modules are called with."""


@dataclass(frozen=True)
class InputFormat:
    """How a model takes a batch.

    Attributes:
        pad_id: the padding token.
        left: padding goes before a text.
        unpadded: texts lie one after the other in one row, without padding.
        first_position: the number of a text's first position; unpadded texts must be given theirs.
        token_types: the model wants segments named; all are 0.
    """

    pad_id: int
    left: bool = False
    unpadded: bool = False
    first_position: int = 0
    token_types: bool = False


def features(plan: Plan, texts: NDArray[np.int64], form: InputFormat) -> Features:
    """The named texts as one batch, on the host.

    Returns:
        Padded: `input_ids` and `attention_mask`, int64 [B, L]. Unpadded: `input_ids` and `position_ids`, int64 [1, T],
        `cu_seq_lens_q` and `cu_seq_lens_k`, int32 [B + 1], `max_length_q` and `max_length_k`, and `seq_idx`, int32
        [1, T], the names by which transformers hands them to FlashAttention. And what the plan says of its texts.
    """
    if form.unpadded:
        made: Features = _unpadded(plan, texts, form.first_position)
        mask = None
    else:
        ids, tokens = plan.padded(texts, pad_id=form.pad_id, left=form.left)
        made = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(tokens)}
        mask = tokens.astype(bool)
    if form.token_types:
        made["token_type_ids"] = torch.zeros_like(made["input_ids"])
    return made | plan.extras(texts, mask)


def on_device(batches: Iterable[Features], device: torch.device) -> Iterator[Features]:
    """Batches on the device, in order.

    To a CUDA device they are copied from page-locked memory on a stream of their own: launching a forward pass does
    not wait for it, so a batch is made and copied while the one before it is computed, and nobody waits for anybody.
    """
    if device.type != "cuda":
        yield from (_to_device(batch, device) for batch in batches)
        return
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    computing = torch.cuda.current_stream(device)
    for batch in batches:
        with torch.cuda.stream(copying):
            there = _to_device(batch, device)
        computing.wait_stream(copying)
        for value in there.values():
            if isinstance(value, Tensor):
                value.record_stream(computing)  # Else the next copy may be given its memory too early.
        yield there


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a host's tensor that the host does not wait for."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _to_device(batch: Features, device: torch.device) -> Features:
    return {name: to_device(value, device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def _unpadded(plan: Plan, texts: NDArray[np.int64], first_position: int) -> Features:
    ids, lengths = plan.joined(texts)
    bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    positions = np.concatenate([np.arange(n) for n in lengths]) + first_position
    rows = np.repeat(np.arange(len(texts), dtype=np.int32), lengths)
    longest = int(lengths.max())
    return {
        "input_ids": torch.from_numpy(ids.astype(np.int64))[None],
        "position_ids": torch.from_numpy(positions)[None],
        "seq_idx": torch.from_numpy(rows)[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
