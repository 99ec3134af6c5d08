"""Prefix reuse: hidden states below the first changed layer are kept, and only the layers above are run.

What layer S−1 puts out depends on the weights below layer S, on the batch and on nothing else. So what was recorded for
one merge is to the bit what any merge with the same weights there computes. A boundary S is that place in the model:
layers 0 … S−1 lie below it. No architecture is known by name: below a boundary every layer answers with what the last
of them once put out, and the model is called as usual.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mergesearch.evaluation.planned import PlannedModel
    from mergesearch.evaluation.tokens import Plan

logger = logging.getLogger(__name__)

Batch = tuple[str, bytes]
"""Fingerprint of a token plan and the positions of the texts."""
LayerOutput = Any
"""A tensor, or a tuple of tensors and of None, as a transformer block puts it out."""


@dataclass
class _Kept:
    output: LayerOutput
    n_bytes: int
    tier: int


class PrefixCache:
    """What layers put out, by prefix and batch, in the dtype it was computed in: on the device, then on the host.

    Where room is needed, the prefix that was used longest ago goes to the host or is forgotten, batch by batch. Those
    of the present trial stay: were they to make room for one another, a trial that does not fit as a whole would
    forget every batch before it comes back to it.

    Args:
        device: where the model is.
        device_bytes: the most that is held there.
        host_bytes: the most that is held on the host beside it.
    """

    def __init__(self, device: torch.device, device_bytes: int, host_bytes: int = 0) -> None:
        self._places = (device, torch.device("cpu"))
        self._limits = [device_bytes, host_bytes]
        self._used = [0, 0]
        self._kept: dict[str, dict[Batch, _Kept]] = {}  # what was used last comes last
        self._present: frozenset[str] = frozenset()

    @property
    def n_bytes(self) -> tuple[int, int]:
        """Bytes held on the device and on the host."""
        return self._used[0], self._used[1]

    def use(self, prefixes: Sequence[str]) -> None:
        """A trial with these prefixes begins. Those that it has no need of now count too: others will come back."""
        self._present = frozenset(prefixes)
        self._kept = {prefix: kept for prefix, kept in self._kept.items() if kept}
        for prefix in prefixes:
            self._kept[prefix] = self._kept.pop(prefix, {})

    def get(self, prefix: str, batch: Batch) -> LayerOutput | None:
        """A copy on the device, because nobody knows what later layers do to it; None when nothing is held."""
        kept = self._kept.get(prefix, {}).get(batch)
        return None if kept is None else _copy(kept.output, self._places[0])

    def holds(self, prefix: str, batch: Batch) -> bool:
        """Whether `get` would find it."""
        return batch in self._kept.get(prefix, {})

    def add(self, prefix: str, batch: Batch, output: LayerOutput) -> None:
        """Keep what nobody else writes to, if there is room or can be made."""
        kept = _Kept(output, sum(t.numel() * t.element_size() for t in _tensors(output)), 0)
        self._put(prefix, batch, kept, 0)

    def give_way(self, *, keep: float = 0.5) -> bool:
        """Forget what is on the device, and hold only this share of the limit there from now on.

        Returns:
            Whether there was anything to forget.
        """
        held = [(p, b) for p, batches in self._kept.items() for b, kept in batches.items() if kept.tier == 0]
        for prefix, batch in held:
            self._take(prefix, batch)
        self._limits[0] = int(keep * self._limits[0])
        return bool(held)

    def _put(self, prefix: str, batch: Batch, kept: _Kept, first: int) -> None:
        """Into the first tier with room, from a given one on."""
        for tier in range(first, len(self._limits)):
            if self._make_room(tier, kept.n_bytes):
                moved = kept.output if tier == kept.tier else _copy(kept.output, self._places[tier])
                self._kept[prefix][batch] = _Kept(moved, kept.n_bytes, tier)
                self._used[tier] += kept.n_bytes
                return

    def _make_room(self, tier: int, n_bytes: int) -> bool:
        if n_bytes > self._limits[tier]:
            return False
        while self._used[tier] + n_bytes > self._limits[tier]:
            oldest = self._oldest(tier)
            if oldest is None:
                return False
            self._put(*oldest, self._take(*oldest), tier + 1)
        return True

    def _oldest(self, tier: int) -> tuple[str, Batch] | None:
        for prefix, batches in self._kept.items():
            if prefix not in self._present:
                for batch, kept in batches.items():
                    if kept.tier == tier:
                        return prefix, batch
        return None

    def _take(self, prefix: str, batch: Batch) -> _Kept:
        kept = self._kept[prefix].pop(batch)
        self._used[kept.tier] -= kept.n_bytes
        return kept


class PrefixReuse:
    """Records what layers put out, and answers with it when a later trial has the same weights below.

    Outside of `trial` nothing is recorded and nothing is reused.

    Args:
        layers: the model's transformer blocks, in the order in which they run.
        boundaries: after how many layers states are kept, in ascending order.
        cache: where.

    Attributes:
        hits: batches that were begun above the first layer.
        misses: batches that were not.
    """

    def __init__(self, layers: Sequence[nn.Module], boundaries: Sequence[int], cache: PrefixCache) -> None:
        self.boundaries = tuple(boundaries)
        self.cache = cache
        self._layers = layers
        self._keys: tuple[tuple[int, str], ...] = ()
        self.hits = self.misses = 0

    @contextmanager
    def trial(self, prefix_key: Callable[[int], str]) -> Iterator[None]:
        """The model holds weights of which `prefix_key` gives the hash below a boundary, until the context ends."""
        self._keys = tuple((boundary, prefix_key(boundary)) for boundary in self.boundaries)
        self.cache.use([key for _, key in self._keys])
        try:
            yield
        finally:
            self._keys = ()

    @contextmanager
    def batch(self, plan: Plan, texts: NDArray[np.int64]) -> Iterator[int]:
        """The model is called with this batch inside the context, once. Yields how many layers will not be run."""
        if not self._keys:
            yield 0
            return
        batch = (plan.fingerprint, texts.tobytes())
        below, key = next((k for k in reversed(self._keys) if self.cache.holds(k[1], batch)), (0, ""))
        recorded: list[tuple[str, LayerOutput]] = []

        def record(key: str, module: nn.Module, inputs: object, output: LayerOutput) -> None:  # noqa: ARG001
            recorded.append((key, _copy(output)))

        with ExitStack() as stack:
            if below:
                known = self.cache.get(key, batch)
                for layer in self._layers[:below]:
                    stack.enter_context(_answering(layer, known))
            for boundary, other in self._keys:
                if boundary > below:
                    hook = self._layers[boundary - 1].register_forward_hook(partial(record, other))
                    stack.callback(hook.remove)
            yield below
        self.hits, self.misses = self.hits + bool(below), self.misses + (not below)
        for other, output in recorded:  # only now: a batch that failed leaves nothing
            self.cache.add(other, batch, output)


def open_reuse(
    model: PlannedModel, boundaries: Sequence[int], cache: PrefixCache, lowest: Mapping[str, float]
) -> PrefixReuse | None:
    """Prefix reuse for a model, once it was seen that it changes no output; None where it would.

    Models whose layers hand on more than they put out, are read between the boundaries, or use what counts as lying
    above them cannot have it. (DeBERTa's layers read position embeddings through a norm that stands after the layers.)

    Args:
        model: an model or a re-ranker.
        boundaries: see `PrefixReuse`.
        cache: the same.
        lowest: for every parameter the lowest layer that it is said to have a say in, as `lowest_layer` gives it.
    """
    plan = model.probe()
    expected = model.outputs(plan)
    before = model.reuse
    try:
        for boundary in boundaries:
            above = [parameter for name, parameter in model.parameters.items() if lowest[name] >= boundary]
            if _depends(model, plan, boundary, above):
                raise ValueError(f"what {boundary} layers put out depends on parameters above them")
            model.reuse = PrefixReuse(model.layers, (boundary,), PrefixCache(model.device, 1 << 30))
            with model.reuse.trial(str):
                found = [model.outputs(plan) for _ in range(2)]
            if not all(torch.equal(outputs, expected) for outputs in found):
                raise ValueError(f"outputs differ when {boundary} layers are not run")
    except Exception as error:
        logger.warning("hidden states are not reused with this model: %s", error)
        return None
    finally:
        model.reuse = before
    return PrefixReuse(model.layers, boundaries, cache)


def _depends(model: PlannedModel, plan: Plan, boundary: int, parameters: Sequence[Tensor]) -> bool:
    """Whether some parameters have a say in what the layers below a boundary put out: autograd follows them there."""
    outputs: list[LayerOutput] = []
    hook = model.layers[boundary - 1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            for inputs in model.inputs(plan, plan.batches):
                model.call(inputs)
    finally:
        hook.remove()
        for parameter in parameters:
            parameter.requires_grad_(False)
    return any(tensor.requires_grad for output in outputs for tensor in _tensors(output))


@contextmanager
def _answering(layer: nn.Module, output: LayerOutput) -> Iterator[None]:
    """Meanwhile the layer puts this out, whatever it is given. It stays what it is to whoever reads its attributes."""
    own = vars(layer).get("forward")
    layer.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if own is None:
            del layer.forward
        else:
            layer.forward = own


def _copy(output: LayerOutput, device: torch.device | None = None) -> LayerOutput:
    """The same tensors in memory of their own."""
    if isinstance(output, Tensor):
        return output.to(device or output.device, copy=True)
    if output is None:
        return None
    if type(output) in (tuple, list):
        return type(output)(_copy(part, device) for part in output)
    raise TypeError(f"a layer puts out a {type(output).__name__}")


def _tensors(output: LayerOutput) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif output is not None:
        for part in output:
            yield from _tensors(part)
