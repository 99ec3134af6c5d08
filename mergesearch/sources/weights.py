"""Reading the weights that a merge needs, and refusing those that would poison it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from mergesearch.errors import Problem, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mergesearch.sources.checkpoint import Checkpoint

Kept: TypeAlias = Literal["device", "pinned", "mapped"]
"""Where a tensor stays: in the memory of the device, page-locked in the host's, or in its mapped file."""


def read_tensors(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    *,
    kept: Kept = "mapped",
    device: str | torch.device | Mapping[str, torch.device] = "cpu",
    dtype: torch.dtype | None = None,
    rows: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Tensors by canonical name.

    `mapped` ones in their stored dtype stay views of the files: several processes on one machine share one copy,
    and the kernel may drop pages and read them again. Treat them as read-only. All others are tensors of their
    own, copied one at a time.

    Args:
        checkpoint: the source.
        names: canonical name to raw name, from `check_sources`.
        kept: where the tensors stay.
        device: whose memory `device` means, for all tensors or by canonical name.
        dtype: what they are converted to; None keeps each as stored.
        rows: canonical name to the rows (int64) that are taken of a tensor; it is then a copy however it is kept.

    Raises:
        SourceError: names every tensor that holds NaN or infinite values, before or after conversion.
    """

    def taken(name: str, stored: torch.Tensor) -> torch.Tensor:
        chosen = (rows or {}).get(name)
        return (stored if chosen is None else stored.index_select(0, chosen)).to(dtype=dtype)

    def place(name: str) -> str | torch.device:
        return device if isinstance(device, str | torch.device) else device[name]

    if kept == "mapped":
        mapped = checkpoint.read_many(names.values())
        read = {name: taken(name, mapped[raw]) for name, raw in names.items()}
    else:
        read = {name: keep(taken(name, checkpoint.read(raw)), kept, place(name)) for name, raw in names.items()}
    broken = [names[name] for name, tensor in read.items() if not _all_finite(tensor)]
    if broken:
        where = f"source {checkpoint.name!r}"
        problems = [Problem(f"tensor {raw!r} holds NaN or infinite values.", where) for raw in broken]
        raise SourceError(problems, "Weights that no merge can use (was the training run diverged?):")
    return read


def keep(tensor: torch.Tensor, kept: Kept, device: str | torch.device) -> torch.Tensor:
    """A tensor of a mapped file, or a copy of it where it is to stay."""
    if kept == "mapped":
        return tensor
    return tensor.pin_memory() if kept == "pinned" else tensor.to(device, copy=True)


def _all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, without a temporary of the tensor's size."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)  # NaN propagates to both
    return bool(torch.isfinite(low) & torch.isfinite(high))
