"""Memory that runs out while a model computes: told from other failures, and given back before another attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from mergesearch.errors import MemoryFullError

T = TypeVar("T")
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


def with_room(
    work: Callable[[], T], doing: str, device: str | torch.device, make_room: Callable[[], bool] = lambda: False
) -> tuple[T, int]:
    """What the work brings, and how often it ran out of memory and was begun again.

    Args:
        work: may be done again after it ran out of memory half-way.
        doing: what it is, in words.
        device: whose memory it needs.
        make_room: gives up what can be done without; False when there is nothing of the kind.

    Raises:
        MemoryFullError: memory ran out, and nothing could make room.
    """
    failures = 0
    while True:
        try:
            return work(), failures
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failures += 1
            if not make_room():
                said = (str(error) or type(error).__name__).splitlines()[0]
                raise MemoryFullError(
                    f"the memory of {device} was full while {doing} ({said}). Take fewer workers, "
                    "`workers.residency: auto`, or a smaller `workers.prefix_cache` or `evaluation.batch_tokens`."
                ) from error
        release()
