"""A model that does not fit one device: its layers lie on several, a stretch of neighbouring ones on each.

accelerate's hooks bring what a layer is called with to where the layer lies, so the forward pass stays the model's own.
Which device a layer goes to follows from the sizes in the files' headers alone: a memory plan knows it beforehand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mergesearch.errors import EvaluationError, MemoryPlanError
from mergesearch.sources.layout import decoder_layer_and_component, lowest_layer
from mergesearch.sources.skeleton import base_prefix, live_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn
    from transformers import PreTrainedModel

    from mergesearch.sources.layout import Layout


def devices(device: str, gpus: int) -> tuple[str, ...]:
    """The devices of one worker: the one that is named, or the first `gpus` of its kind.

    Several times `cpu` is one place with the hooks of several.

    Raises:
        MemoryPlanError: this process sees fewer GPUs.
    """
    if gpus == 1 or not device.startswith("cuda"):
        return (device,) * gpus
    there = torch.cuda.device_count()
    if there < gpus:
        raise MemoryPlanError(
            f"`workers.gpus: {gpus}` asks for more CUDA GPUs than the {there} that this process sees."
        )
    return tuple(f"cuda:{i}" for i in range(gpus))


def numbers(layout: Layout, n: int) -> dict[str, int]:
    """Parameter name to the number of its device, so that each of `n` holds about as much.

    Embeddings lie on the first, what follows the layers on the last; a decoder's layers follow the encoder's.
    """
    sizes = {name: torch.Size(p.shape).numel() for name, p in layout.parameters.items()}
    layer = {name: _layer(p.place, layout) for name, p in layout.parameters.items()}
    total, below = max(1, sum(sizes.values())), sum(size for name, size in sizes.items() if layer[name] < 0)
    found: dict[float, int] = {}
    for k in range(layout.n_layers + layout.n_decoder_layers):
        size = sum(sizes[name] for name in sizes if layer[name] == k)
        found[k] = min(n - 1, n * (2 * below + size) // (2 * total))  # where the middle of the layer comes to lie
        below += size
    return {name: 0 if k < 0 else found.get(k, n - 1) for name, k in layer.items()}


def _layer(place: str, layout: Layout) -> float:
    decodes = decoder_layer_and_component(place)
    return lowest_layer(place) if decodes is None else layout.n_layers + decodes[0]


def largest_share(layout: Layout, n: int) -> float:
    """Share of the parameters on the device that holds the most of them."""
    held = [0] * n
    for name, number in numbers(layout, n).items():
        held[number] += torch.Size(layout.parameters[name].shape).numel()
    return max(held) / max(1, sum(held))


def spread(model: Any, layout: Layout, names: Sequence[str]) -> None:
    """Move a loaded `SentenceTransformer` to several devices; texts go in and embeddings come out at the first.

    Raises:
        EvaluationError: as of `spread_transformer`.
    """
    spread_transformer(model[0].model, layout, names)
    for module in list(model)[1:]:
        module.to(torch.device(names[0]))


def spread_transformer(transformer: PreTrainedModel, layout: Layout, names: Sequence[str]) -> None:
    """Move a loaded model of transformers, with its head where the layout has one, to several devices.

    Raises:
        EvaluationError: accelerate is not installed, or the model has weights outside of its modules' reach.
    """
    try:
        from accelerate import dispatch_model
    except ImportError:
        raise EvaluationError(
            "a model on several GPUs needs the package accelerate: pip install 'mergesearch[multigpu]'"
        ) from None
    there = [torch.device(name) for name in names]
    prefix = "" if layout.head is None else base_prefix(transformer)
    live, of_layout = live_names(transformer, prefix), numbers(layout, len(there))
    number = {
        name: of_layout[canonical] for canonical, found in live.items() if canonical in of_layout for name in found
    }
    stacks = tuple(prefix + path for path in (layout.layers_path, layout.decoder_path) if path)
    placed = {module: there[i] for module, i in _modules(transformer, "", stacks, number)}
    # Every layer fills its own part of such a cache, where it lies.
    kept = getattr(transformer, "_skip_keys_device_placement", None)
    dispatch_model(transformer, placed, main_device=there[0], skip_keys=kept, force_hooks=True)
    wrong = [name for name, p in transformer.named_parameters() if p.device != there[number.get(name, 0)]]
    if wrong:
        raise EvaluationError(f"this model cannot lie on several devices: {wrong[0]} belongs to no layer. Use one GPU.")


def _modules(
    module: nn.Module, path: str, stacks: tuple[str, ...], number: Mapping[str, int]
) -> Iterator[tuple[str, int]]:
    """The layers, and the largest modules beside them, each with the number of its device."""
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        if any(f"{stack}.".startswith(f"{inside}.") for stack in stacks):
            yield from _modules(child, inside, stacks, number)
        else:
            held = [number[f"{inside}.{n}"] for n, _ in child.named_parameters() if f"{inside}.{n}" in number]
            yield inside, held[0] if held else 0
