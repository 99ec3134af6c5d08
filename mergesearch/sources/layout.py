"""The parts of a model, found from the structure of an empty one built from its config.

No architecture is known by name: the transformer blocks are the shallowest list of modules that hold weight
matrices, every other parameter is placed by what it is and where it stands relative to that list, and inside a
block by whether it scales, attends, or does neither. What lies outside a model's base is its head.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mergesearch.sources.config import load_config
from mergesearch.sources.skeleton import (
    Head,
    base_prefix,
    build_skeleton,
    canonical_parameters,
    find_decoder_layers,
    find_layers,
    live_names,
    untie_output,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

__all__ = ["Head", "build_skeleton", "canonical_parameters", "find_decoder_layers", "find_layers"]

EMBEDDINGS, FINAL_NORM, POOLER, HEAD = "embeddings", "final_norm", "pooler", "head"
DECODER_NORM = "decoder.final_norm"
ATTENTION, MLP, NORMS = COMPONENTS = ("attention", "mlp", "norms")
"""Parts of a block: what attends (projections before and after included), all norms, and everything else."""

_ATTENDS = re.compile("attention|attn|mha", re.IGNORECASE)


@dataclass(frozen=True)
class Parameter:
    """One parameter of the encoder.

    Attributes:
        name: canonical name: as in the state dict of the bare encoder (AutoModel, or the encoder half); a head's, and
            those of a decoder, as in the whole model.
        shape: of the tensor.
        place: `embeddings`, `layer.3.attention`, `layer.3.mlp`, `layer.3.norms`, `final_norm` or `pooler`, which
            is a pooler or any other part of the encoder after the layers; of models with a head also `head`, and of
            encoder-decoders `decoder.3.attention` (both of them), `decoder.3.mlp`, `decoder.3.norms` and
            `decoder.final_norm`.
    """

    name: str
    shape: tuple[int, ...]
    place: str


@dataclass(frozen=True)
class Layout:
    """What an encoder, or a model with a head, consists of.

    Attributes:
        parameters: by canonical name, in the model's order; tied parameters once.
        tied: other canonical names to the name in `parameters` that they share a tensor with.
        buffers: canonical names of persistent buffers: never merged, taken from the template.
        n_layers: transformer blocks; of an encoder-decoder the encoder's.
        layers_path: canonical name of the list of blocks, for example `encoder.layer`.
        model_type: as in config.json.
        vocab_size: rows of the token embedding.
        hidden_size: width of the hidden states.
        word_embeddings: canonical name of the token embedding.
        n_decoder_layers: transformer blocks of the decoder; 0 where there is none.
        decoder_path: canonical name of their list, for example `decoder.block`.
        head: what the model ends in; None for a bare encoder.
    """

    parameters: Mapping[str, Parameter]
    tied: Mapping[str, str]
    buffers: tuple[str, ...]
    n_layers: int
    layers_path: str
    model_type: str
    vocab_size: int
    hidden_size: int
    word_embeddings: str
    n_decoder_layers: int = 0
    decoder_path: str = ""
    head: Head | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Every place that holds parameters, in the order in which text passes them."""
        used = {parameter.place for parameter in self.parameters.values()}
        inside, decoding = (
            [f"{stack}.{i}.{component}" for i in range(n) for component in COMPONENTS]
            for stack, n in (("layer", self.n_layers), ("decoder", self.n_decoder_layers))
        )
        order = (EMBEDDINGS, *inside, FINAL_NORM, POOLER, *decoding, DECODER_NORM, HEAD)
        return tuple(place for place in order if place in used)

    def names(self, place: str) -> tuple[str, ...]:
        """Canonical names of the parameters at a place, in the model's order."""
        return tuple(name for name, parameter in self.parameters.items() if parameter.place == place)


def layer_and_component(place: str) -> tuple[int, str] | None:
    """(3, "norms") for `layer.3.norms`; None for a place outside the layers, such as one in a decoder."""
    return _number_and_component(place, "layer")


def decoder_layer_and_component(place: str) -> tuple[int, str] | None:
    """(3, "norms") for `decoder.3.norms`; None for a place outside the decoder's layers."""
    return _number_and_component(place, "decoder")


def _number_and_component(place: str, stack: str) -> tuple[int, str] | None:
    kind, _, inside = place.partition(".")
    number, _, component = inside.partition(".")
    return (int(number), component) if kind == stack and component else None


def lowest_layer(place: str) -> float:
    """The first transformer block whose output a place has a say in: -1 for what comes before all blocks.

    For what comes after them, a decoder among it, it is infinite.
    """
    inside = layer_and_component(place)
    return inside[0] if inside else -1 if place == EMBEDDINGS else math.inf


def span(places: Sequence[str]) -> str:
    """What places cover, for people: a layer with all its components is one word, and long lists are cut."""
    words: list[str] = []
    for place in places:
        layer = place.rpartition(".")[0]
        whole = layer and all(f"{layer}.{component}" in places for component in COMPONENTS)
        word = layer if whole else place
        if word not in words:
            words.append(word)
    return ", ".join(words) if len(words) < 4 else f"{words[0]} … {words[-1]} ({len(words)})"


def read_layout(folder: Path, *, head: Head | None = None, trust_remote_code: bool = False) -> Layout:
    """The layout of the model in `folder`, from its config.

    No weight is read, but for two embedding tables of a model with a head whose files hold both: whether they are one.

    Args:
        folder: of the model.
        head: what it ends in; None for its bare encoder.
        trust_remote_code: its config may run code of its own.

    Raises:
        SourceError: the config cannot be used, the architecture has no such head, or no list of transformer blocks can
            be found.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    model = build_skeleton(config, head=head, trust_remote_code=trust_remote_code)
    if head is not None:
        untie_output(model, folder)
    prefix = "" if head is None else base_prefix(model)
    live = live_names(model, prefix)
    layers_path, layers = find_layers(model)
    decoder_path, decoder_layers = find_decoder_layers(model) or ("", ())
    in_model = {name for names in live.values() for name in names}
    embedding = model.get_input_embeddings().weight
    return Layout(
        parameters=_place_parameters(model, head, live, prefix, layers_path, decoder_path),
        tied={alias.removeprefix(prefix): name for name, names in live.items() for alias in names[1:]},
        buffers=tuple(name.removeprefix(prefix) for name in model.state_dict() if name not in in_model),
        n_layers=len(layers),
        layers_path=layers_path.removeprefix(prefix),
        model_type=str(config.model_type),
        vocab_size=int(embedding.shape[0]),
        hidden_size=int(getattr(config.get_text_config(), "hidden_size", embedding.shape[1])),
        word_embeddings=next(name for name, names in live.items() if model.get_parameter(names[0]) is embedding),
        n_decoder_layers=len(decoder_layers),
        decoder_path=decoder_path.removeprefix(prefix),
        head=head,
    )


def _place_parameters(
    model: PreTrainedModel,
    head: Head | None,
    live: Mapping[str, Sequence[str]],
    prefix: str,
    layers_path: str,
    decoder_path: str,
) -> dict[str, Parameter]:
    stacks = {"layer": f"{layers_path}."} | ({"decoder": f"{decoder_path}."} if decoder_path else {})
    names = [found[0] for found in live.values()]
    first_block = next(i for i, name in enumerate(names) if name.startswith(stacks["layer"]))
    output = None if head is None else model.get_output_embeddings()
    placed = {}
    for i, (canonical, (name, *_)) in enumerate(live.items()):
        owner_path = name.rpartition(".")[0]
        owner = model.get_submodule(owner_path)
        stack = next((stack for stack, inside in stacks.items() if name.startswith(inside)), None)
        if stack is not None:
            number, _, path = owner_path.removeprefix(stacks[stack]).partition(".")
            place = f"{stack}.{number}.{placed_component(model.get_submodule(stacks[stack] + number), path)}"
        elif not name.startswith(prefix) or owner is output:
            place = HEAD
        elif isinstance(owner, nn.Embedding) or i < first_block:
            place = EMBEDDINGS
        else:
            place = _after_blocks(owner, owner_path, stacks)
        placed[canonical] = Parameter(canonical, tuple(model.get_parameter(name).shape), place)
    return placed


def _after_blocks(owner: nn.Module, path: str, stacks: Mapping[str, str]) -> str:
    """The place of a module that is listed after the blocks."""
    name = path.rpartition(".")[2]
    holds = [stack for stack, inside in stacks.items() if inside.startswith(path.removesuffix(name))]
    if not _is_norm(owner) or not holds:
        return POOLER
    if len(stacks) > 1 and "embed" in name:  # the halves of BART list the norm of their embeddings last
        return EMBEDDINGS
    # Unlike a norm inside a head, its parent holds the blocks too.
    return FINAL_NORM if "layer" in holds else DECODER_NORM


def placed_component(block: nn.Module, path: str) -> str:
    """What the module at `path` inside a block is part of, by its structure and the words of classes and attributes."""
    if _is_norm(block.get_submodule(path)):
        return NORMS
    module = block
    for name in path.split(".") if path else ():
        module = module.get_submodule(name)
        if _ATTENDS.search(name) or _ATTENDS.search(type(module).__name__):
            return ATTENTION
    return MLP


def _is_norm(module: nn.Module) -> bool:
    """A module that scales vectors and mixes nothing: all its own parameters are one-dimensional."""
    return all(p.dim() == 1 for p in module.parameters(recurse=False)) and hasattr(module, "weight")
