"""How much memory hidden states may take that are kept for later trials, and below which layers they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FREE_SHARE = 0.5
"""Of the memory that is left beside everything else, as much may be taken where the study file says nothing."""


@dataclass(frozen=True)
class PrefixSpec:
    """What a study has use for.

    Attributes:
        boundaries: after how many layers hidden states of one trial may serve another, in ascending order.
        prefixes: how many prefixes the search goes to and fro between.
        token_bytes: of one token's hidden states at one boundary.
        cache_bytes: what the study file grants; None leaves it to the worker.
    """

    boundaries: tuple[int, ...] = ()
    prefixes: int = 1
    token_bytes: int = 0
    cache_bytes: int | None = None


class PrefixRoom(NamedTuple):
    """Boundaries that states are kept at, and bytes of them on the device and on the host beside it."""

    boundaries: tuple[int, ...] = ()
    device: int = 0
    host: int = 0


def prefix_room(spec: PrefixSpec, device: str, *, tokens: int, room: int, host: int) -> PrefixRoom:
    """What is kept where.

    A boundary is worth little unless the states of a whole trial fit, so as many are kept as fit, the highest first:
    those save the most layers. What the study file grants is used even if it is less than that, and all of it: T5's
    layers also hand on position biases of heads × length numbers per token, which are not counted here.

    Args:
        spec: what the study has use for.
        device: where merges are evaluated, as torch names it.
        tokens: of one trial, padding counted.
        room: bytes on the device that are left beside everything else a worker holds there.
        host: bytes of the host's memory that one worker may fill.
    """
    cuda = device.startswith("cuda")
    free_device, free_host = int(FREE_SHARE * max(0, room)), int(FREE_SHARE * max(0, host)) if cuda else 0
    granted = free_device + free_host if spec.cache_bytes is None else spec.cache_bytes
    one = max(1, tokens * spec.token_bytes)
    fitting = granted // one
    if not fitting and not spec.cache_bytes:
        return PrefixRoom()
    boundaries = spec.boundaries[-max(1, fitting) :]
    total = min(granted, len(boundaries) * spec.prefixes * one) if spec.cache_bytes is None else granted
    on_device = min(total, free_device) if cuda else total
    return PrefixRoom(boundaries, on_device, total - on_device)
