"""`PlannedModel`: a resident model that is fed with planned batches; what encoders and re-rankers have in common.

Its weights may be overwritten in place between calls. Memory that runs out splits batches and leaves plans as they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mergesearch.errors import MemoryFullError
from mergesearch.evaluation.inputs import Features, InputFormat, features, on_device, to_device
from mergesearch.evaluation.memory import is_out_of_memory, release
from mergesearch.sources.layout import find_layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mergesearch.evaluation.prefix import PrefixReuse
    from mergesearch.evaluation.tokens import Plan

OnBatch = Callable[[], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class PlannedModel(ABC):
    """Planned texts or pairs to outputs under the weights the model holds at the moment.

    Not safe for use from several threads. Equal weights, plan, dtype, device type and thread count give equal
    outputs to the bit.

    Notation: N texts of a plan, B of a batch.

    Attributes:
        parameters: canonical name to live parameter of the transformer, tied ones once. Overwrite in place.
        notes: what was out of the ordinary since the list was last cleared, such as a batch that was split.
        layer_tokens: useful tokens times the transformer layers that were run for them, since it was last set.
        reuse: what keeps hidden states for merges that are equal in their lower layers; None when nothing does.
        most_tokens: padded tokens of the largest batch that is tried, since a larger one did not fit into memory; None
            while everything did. A planned batch beyond it is halved until it is not: plans stay as they are.
        out_of_memory: how often memory ran out, since it was last set.
    """

    def __init__(self, parameters: Mapping[str, Tensor], form: InputFormat) -> None:
        self.parameters = parameters
        self.notes: list[str] = []
        self.layer_tokens = 0
        self.reuse: PrefixReuse | None = None
        self.most_tokens: int | None = None
        self.out_of_memory = 0
        self._form = form

    @property
    @abstractmethod
    def transformer(self) -> Any:
        """The model of transformers that holds the parameters; its `save_pretrained` writes them."""

    @property
    @abstractmethod
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what comes out for one text."""

    @abstractmethod
    def call(self, inputs: Features) -> Tensor:
        """The forward pass over a batch: outputs, fp32 [B, *output_shape]. `inputs` is left as it is."""

    @abstractmethod
    def probe(self) -> Plan:
        """A plan of a few short texts, to try things out with."""

    @property
    def device(self) -> torch.device:
        """Where texts go in and outputs come out: where the weights are, or the first of them on several devices."""
        return next(iter(self.parameters.values())).device

    @cached_property
    def layers(self) -> tuple[torch.nn.Module, ...]:
        """The transformer blocks, in the order in which they run."""
        return tuple(find_layers(self.transformer)[1])

    def outputs(self, plan: Plan, on_batch: OnBatch | None = None) -> Tensor:
        """Outputs for all texts in their order, fp32 [N, *output_shape], on the model's device.

        Raises:
            MemoryFullError: one text alone does not fit into memory.
        """
        found = torch.empty(plan.n_texts, *self.output_shape, device=self.device)
        for rows, part in self.chunks(plan, plan.n_texts, on_batch):
            found[to_device(torch.from_numpy(rows), self.device)] = part
        return found

    def chunks(
        self, plan: Plan, most_texts: int, on_batch: OnBatch | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Outputs for at most `most_texts` texts (or one batch) at a time.

        Yields:
            Positions of the texts, int64 [C], and their outputs, fp32 [C, *output_shape].

        Raises:
            MemoryFullError: one text alone does not fit into memory.
        """
        for numbers in plan.chunks(most_texts):
            batches = [plan.batches[number] for number in numbers]
            parts = []
            for batch, inputs in zip(batches, self.inputs(plan, batches), strict=True):
                parts.append(self._run(plan, batch, inputs))
                if on_batch is not None:
                    on_batch()
            yield np.concatenate(batches), torch.cat(parts)

    def run_batch(self, plan: Plan, texts: NDArray[np.int64]) -> Tensor:
        """Outputs for the named texts as one batch, fp32 [B, *output_shape].

        Where memory runs out, hidden states kept for later trials make room first. Then the batch is halved until it
        fits, and so is every later one of its size; `notes` says so.

        Raises:
            MemoryFullError: one text alone does not fit into memory.
        """
        return self._run(plan, texts, next(self.inputs(plan, [texts])))

    def inputs(self, plan: Plan, batches: Iterable[NDArray[np.int64]]) -> Iterator[Features]:
        """What the model is called with for each batch, on its device; see `on_device`."""
        return on_device((features(plan, texts, self._form) for texts in batches), self.device)

    def _run(self, plan: Plan, texts: NDArray[np.int64], inputs: Features) -> Tensor:
        count, longest = len(texts), int(plan.lengths[texts].max())
        if self.most_tokens is not None and count > 1 and count * longest > self.most_tokens:
            self.notes.append(f"a batch was split: {self.most_tokens:,} tokens are the most that fitted into memory")
            halves = np.split(texts, [count // 2])
            return torch.cat([self.run_batch(plan, half) for half in halves])
        try:
            return self._forward(plan, texts, inputs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory += 1
            # What is kept for later must not decide how a batch is split.
            made_room = self.reuse is not None and self.reuse.cache.give_way()
            if count == 1 and not made_room:
                raise MemoryFullError(
                    f"a single text of {longest} tokens does not fit into the memory of {self.device}. Give "
                    "a smaller maximum length, or a device with more memory."
                ) from error
        # Only here, past the handler, are the failed attempt's tensors free.
        release()
        self.notes.append(f"memory ran out over a batch of {count} × {longest} tokens")
        if made_room:
            self.notes.append("hidden states of earlier trials were given up for want of memory")
        else:
            self.most_tokens = (count + 1) // 2 * longest
        return self.run_batch(plan, texts)

    @torch.inference_mode()
    def _forward(self, plan: Plan, texts: NDArray[np.int64], inputs: Features) -> Tensor:
        with nullcontext(0) if self.reuse is None else self.reuse.batch(plan, texts) as known_layers:
            outputs = self.call(inputs)
        self.layer_tokens += int(plan.lengths[texts].sum()) * (len(self.layers) - known_layers)
        return outputs
