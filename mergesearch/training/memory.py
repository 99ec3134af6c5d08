"""What a training takes of a device, estimated from shapes, and the refusal of what it does not have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from mergesearch.errors import MemoryPlanError
from mergesearch.sources.layout import find_layers
from mergesearch.workers.residency import free_memory

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_OPTIMIZER_BYTES = 16  # a trained number, its gradient and AdamW's two moments, float32
_BLOCK_FLOATS = 34 / 2
"""Numbers per token and hidden unit that a block keeps for its backward pass: 34 bytes at 16 bits without the
attention matrices, which are not kept (Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198, equation 2)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes, estimated.

    Attributes:
        weights: of the model as it is loaded.
        trained: trained numbers with gradients and optimizer.
        activations: of one batch of the longest texts.
        logits: of one batch, with their gradient; 0 without a language-model head.
    """

    weights: int
    trained: int
    activations: int
    logits: int

    @property
    def needed(self) -> int:
        """All together."""
        return sum(getattr(self, field.name) for field in fields(self))


def training_memory(
    encoder: nn.Module,
    config: PretrainedConfig,
    *,
    trained: int,
    dtype: torch.dtype,
    tokens: int,
    head: bool,
    checkpointing: bool = False,
) -> TrainingMemory:
    """The estimate for an encoder, which may be empty (on torch's meta device).

    Args:
        encoder: what is trained, or adapted.
        config: its config.
        trained: numbers that are trained.
        dtype: what weights are loaded in and activations are computed in.
        tokens: of one batch.
        head: whether every token's scores over the vocabulary are computed.
        checkpointing: whether activations inside blocks are computed again in the backward pass.
    """
    numbers = sum(p.numel() for p in encoder.parameters())
    text = config.get_text_config()
    hidden, vocab = int(text.hidden_size), int(text.vocab_size)
    blocks = len(find_layers(encoder)[1])
    floats = blocks * 1 + _BLOCK_FLOATS if checkpointing else blocks * _BLOCK_FLOATS
    return TrainingMemory(
        weights=numbers * dtype.itemsize,
        trained=trained * _OPTIMIZER_BYTES,
        activations=int(floats * tokens * hidden * dtype.itemsize),
        logits=tokens * vocab * 4 * 2 if head else 0,
    )


def check_training_memory(plan: TrainingMemory, device: str, remedy: str) -> None:
    """Refuse what the device does not hold.

    Raises:
        MemoryPlanError: with what is needed, part by part, and what is there.
    """
    free = free_memory(device)
    if plan.needed > free:
        parts = ", ".join(f"{f.name} {_gib(getattr(plan, f.name))}" for f in fields(plan))
        raise MemoryPlanError(
            f"training needs about {_gib(plan.needed)} GiB ({parts}), {_gib(free)} GiB are free on {device}. {remedy}"
        )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 30):,.2f}"
