"""The parts of a model, found from the structure of an empty one built from its config.

No architecture is known by name: the transformer blocks are the shallowest list of modules that hold weight
matrices, every other parameter is placed by what it is and where it stands relative to that list, and inside a
block by whether it scales, attends, or does neither.
"""

from __future__ import annotations

import copy
import importlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from mergesearch.errors import SourceError
from mergesearch.sources.config import load_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PretrainedConfig, PreTrainedModel

EMBEDDINGS, FINAL_NORM, POOLER = "embeddings", "final_norm", "pooler"
ATTENTION, MLP, NORMS = COMPONENTS = ("attention", "mlp", "norms")
"""Parts of a block: what attends (projections before and after included), all norms, and everything else."""

_ATTENDS = re.compile("attention|attn|mha", re.IGNORECASE)


@dataclass(frozen=True)
class Parameter:
    """One parameter of the encoder.

    Attributes:
        name: canonical name: as in the state dict of the bare encoder (AutoModel, or the encoder half).
        shape: of the tensor.
        place: `embeddings`, `layer.3.attention`, `layer.3.mlp`, `layer.3.norms`, `final_norm` or `pooler`, which
            is a pooler or any other head after the layers.
    """

    name: str
    shape: tuple[int, ...]
    place: str


@dataclass(frozen=True)
class Layout:
    """What an encoder consists of.

    Attributes:
        parameters: by canonical name, in the model's order; tied parameters once.
        tied: other canonical names to the name in `parameters` that they share a tensor with.
        buffers: canonical names of persistent buffers: never merged, taken from the template.
        n_layers: transformer blocks.
        layers_path: canonical name of the list of blocks, for example `encoder.layer`.
        model_type: as in config.json.
        vocab_size: rows of the token embedding.
        hidden_size: width of the hidden states.
        word_embeddings: canonical name of the token embedding.
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

    @property
    def places(self) -> tuple[str, ...]:
        """Every place that holds parameters, in the order in which text passes them."""
        used = {parameter.place for parameter in self.parameters.values()}
        inside = (f"layer.{i}.{component}" for i in range(self.n_layers) for component in COMPONENTS)
        order = (EMBEDDINGS, *inside, FINAL_NORM, POOLER)
        return tuple(place for place in order if place in used)

    def names(self, place: str) -> tuple[str, ...]:
        """Canonical names of the parameters at a place, in the model's order."""
        return tuple(name for name, parameter in self.parameters.items() if parameter.place == place)


def layer_and_component(place: str) -> tuple[int, str] | None:
    """(3, "norms") for `layer.3.norms`; None for a place outside the layers."""
    kind, _, inside = place.partition(".")
    if kind != "layer":
        return None
    number, _, component = inside.partition(".")
    return int(number), component


def lowest_layer(place: str) -> float:
    """The first transformer block whose output a place has a say in: -1 for what comes before all blocks.

    For what comes after them it is infinite.
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


def read_layout(folder: Path, *, trust_remote_code: bool = False) -> Layout:
    """The layout of the model in `folder`, from its config alone; no weight is read.

    Raises:
        SourceError: the config cannot be used, or no list of transformer blocks can be found.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    model = build_skeleton(config, trust_remote_code=trust_remote_code)
    layers_path, layers = find_layers(model)
    named = dict(model.named_parameters())
    everywhere = dict(model.named_parameters(remove_duplicate=False))
    first_name = {id(parameter): name for name, parameter in named.items()}
    persistent = model.state_dict().keys() - everywhere.keys()
    embedding = model.get_input_embeddings().weight
    return Layout(
        parameters=_place_parameters(model, named, layers_path),
        tied={name: first_name[id(p)] for name, p in everywhere.items() if name not in named},
        buffers=tuple(name for name in model.state_dict() if name in persistent),
        n_layers=len(layers),
        layers_path=layers_path,
        model_type=str(config.model_type),
        vocab_size=int(embedding.shape[0]),
        hidden_size=int(getattr(config.get_text_config(), "hidden_size", embedding.shape[1])),
        word_embeddings=first_name[id(embedding)],
    )


def build_skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The bare encoder on torch's meta device: all names and shapes, no memory.

    Encoder-decoder configs give their encoder half, as sentence-transformers loads them.

    Raises:
        SourceError: transformers cannot build the model, or an encoder-decoder family has no encoder model.
    """
    config = copy.deepcopy(config)
    try:
        with torch.device("meta"):
            encoder = _encoder_class(config)
            if encoder is not None:
                config.is_encoder_decoder = False
                return encoder(config)
            model: PreTrainedModel = AutoModel.from_config(
                config, attn_implementation="eager", trust_remote_code=trust_remote_code
            )
            return model
    except SourceError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        message = f"no model can be built from a config of type {config.model_type!r}: {error}"
        raise SourceError([message]) from error


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The canonical name of the list of transformer blocks, and the list.

    It is the shallowest `nn.ModuleList` whose members hold weight matrices; of several equally shallow ones,
    the one with the most parameters.

    Raises:
        SourceError: there is none, or a block's parts lie in several parallel lists.
    """
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(_has_matrix(member) for member in module)
    ]
    if not lists:
        raise SourceError([f"no list of transformer blocks was found in {type(model).__name__}."])
    depth = min(path.count(".") for path, _ in lists)
    shallowest = [(path, module) for path, module in lists if path.count(".") == depth]
    path, layers = max(shallowest, key=lambda item: _size(item[1]))
    parent = path.rpartition(".")[0]
    parallel = [p for p, m in shallowest if p.rpartition(".")[0] == parent and len(m) == len(layers) and p != path]
    if parallel:
        listed = ", ".join((path, *parallel))
        raise SourceError([f"{type(model).__name__} spreads its blocks over parallel lists ({listed})."])
    return path, layers


def _place_parameters(model: nn.Module, named: Mapping[str, nn.Parameter], layers_path: str) -> dict[str, Parameter]:
    inside = f"{layers_path}."
    names = list(named)
    first_block = next(i for i, name in enumerate(names) if name.startswith(inside))
    placed = {}
    for i, (name, parameter) in enumerate(named.items()):
        owner_path = name.rpartition(".")[0]
        owner = model.get_submodule(owner_path)
        if name.startswith(inside):
            number, _, path = owner_path.removeprefix(inside).partition(".")
            place = f"layer.{number}.{placed_component(model.get_submodule(inside + number), path)}"
        elif isinstance(owner, nn.Embedding) or i < first_block:
            place = EMBEDDINGS
        elif _is_norm(owner) and inside.startswith(_parent(owner_path)):
            place = FINAL_NORM  # unlike a norm inside a head, its parent holds the blocks too
        else:
            place = POOLER
        placed[name] = Parameter(name, tuple(parameter.shape), place)
    return placed


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


def _parent(path: str) -> str:
    parent = path.rpartition(".")[0]
    return f"{parent}." if parent else ""


def _has_matrix(module: nn.Module) -> bool:
    """Whether a module holds a weight matrix that is not an embedding table."""
    return any(
        parameter.dim() > 1
        for part in module.modules()
        if not isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _encoder_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """For encoder-decoder families the class of their encoder model; None for all others.

    The config's `is_encoder_decoder` does not tell: transformers clears it when it saves an encoder alone.
    """
    if type(config) not in MODEL_MAPPING:
        return None
    whole = MODEL_MAPPING[type(config)]
    if isinstance(whole, tuple):  # families with several bare models; AutoModel chooses by `architectures`
        return None
    name = f"{whole.__name__.removesuffix('Model')}EncoderModel"
    encoder: type[PreTrainedModel] | None = getattr(importlib.import_module(whole.__module__), name, None)
    if encoder is None and getattr(config, "is_encoder_decoder", False):
        raise SourceError([f"{whole.__name__} is an encoder-decoder, and transformers has no {name} for it."])
    return encoder
