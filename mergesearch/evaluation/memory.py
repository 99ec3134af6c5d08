"""Memory that runs out while a model computes: told from other failures, and given back before another attempt."""

from __future__ import annotations

import torch

_WORDS = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "CUBLAS_STATUS_ALLOC_FAILED",  # the workspaces of libraries, which torch's allocator does not see
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch, NumPy and Python itself each say it in their own way."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def release() -> None:
    """Give memory that torch keeps for later use back to the devices; other processes and libraries see it then.

    To be called outside of the handler of the failure: inside, the traceback still holds the failed attempt's tensors.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
