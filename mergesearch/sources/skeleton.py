"""Empty models built from configs, their lists of transformer blocks, and the names of their parameters.

Names are canonical: those of the bare encoder. A model with a head puts its base model's name before them (`bert.`,
`model.`), which is left off, so that models with heads, without, and with other heads agree on the rest.
"""

from __future__ import annotations

import copy
import importlib
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from mergesearch.errors import SourceError
from mergesearch.sources.checkpoint import Checkpoint
from mergesearch.sources.locate import WEIGHT_FILES, model_folder

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PretrainedConfig

Head: TypeAlias = Literal["sequence_classification", "seq2seq_lm", "causal_lm"]
"""What a whole model ends in, named after transformers' classes: `AutoModelForSequenceClassification`, …"""

_WITH_HEAD = {
    "sequence_classification": AutoModelForSequenceClassification,
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
}
_BUILT_BADLY = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)


def build_skeleton(
    config: PretrainedConfig, *, head: Head | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model on torch's meta device: all names and shapes, no memory.

    Without a head it is the bare encoder; encoder-decoder configs then give their encoder half, as
    sentence-transformers loads them.

    Raises:
        SourceError: transformers cannot build the model, has no such head for it, or an encoder-decoder family has no
            encoder model.
    """
    config = copy.deepcopy(config)
    build = AutoModel if head is None else _WITH_HEAD[head]
    if head is not None and type(config) not in build._model_mapping and build.__name__ not in _remote(config):
        raise SourceError([f"transformers has no {build.__name__} for models of type {config.model_type!r}."])
    try:
        with torch.device("meta"):
            encoder = _encoder_class(config) if head is None else None
            if encoder is not None:
                config.is_encoder_decoder = False
                return encoder(config)
            model: PreTrainedModel = build.from_config(
                config, attn_implementation="eager", trust_remote_code=trust_remote_code
            )
            return model
    except SourceError:
        raise
    except _BUILT_BADLY as error:
        message = f"no model can be built from a config of type {config.model_type!r}: {error}"
        raise SourceError([message]) from error


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name of the list of transformer blocks, as the model has it, and the list.

    It is the shallowest `nn.ModuleList` whose members hold weight matrices; of several equally shallow ones,
    the one with the most parameters. Of a whole encoder-decoder it is the encoder's.

    Raises:
        SourceError: there is none, or a block's parts lie in several parallel lists.
    """
    halves = _halves(model)
    return _blocks(model) if halves is None else _within(model, halves[0])


def find_decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Like `find_layers`, for the decoder of an encoder-decoder; None for other models."""
    halves = _halves(model)
    return None if halves is None else _within(model, halves[1])


def base_prefix(model: nn.Module) -> str:
    """What stands before the names of the base model's parameters: `bert.`; nothing where the model is its own base."""
    base = getattr(model, "base_model", model)
    path = next(path for path, module in model.named_modules() if module is base)
    return f"{path}." if path else ""


def live_names(model: nn.Module, prefix: str) -> dict[str, tuple[str, ...]]:
    """Canonical name of every parameter to its names in the model, those with the prefix first; tied parameters once.

    Parameters of the base model come first, and otherwise in the model's order.

    Raises:
        SourceError: the head and the base model name a parameter alike.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    ordered = [sorted(found, key=lambda name: not name.startswith(prefix)) for found in names.values()]
    ordered.sort(key=lambda found: not found[0].startswith(prefix))
    named = {found[0].removeprefix(prefix): tuple(found) for found in ordered}
    if len(named) < len(ordered):
        raise SourceError([f"the head of {type(model).__name__} has parameters of the same names as its encoder."])
    return named


def canonical_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters of a loaded model with a head, by the names and in the order of its layout; tied ones once."""
    return {name: model.get_parameter(live[0]) for name, live in live_names(model, base_prefix(model)).items()}


def untie_output(model: PreTrainedModel, folder: Path) -> None:
    """Give a skeleton output embeddings of their own where the files hold some that differ from the input embeddings.

    So transformers loads them, whatever the config says of ties: T5 1.1 and mT5 have two tables, T5 has one, and their
    configs are alike since transformers 5. Nothing is done where the folder holds no weights.

    Raises:
        SourceError: the folder's weights cannot be read.
    """
    output, table = model.get_output_embeddings(), model.get_input_embeddings().weight
    if output is None or output.weight is not table or not _weights_lie_in(folder):
        return
    prefix = base_prefix(model)
    live = next(found for found in live_names(model, prefix).values() if model.get_parameter(found[0]) is table)
    path = next(path for path, module in model.named_modules() if module is output)
    checkpoint = Checkpoint.open(str(folder), folder)
    own = f"{path}.weight"
    inputs = [raw for name in live if name != own for raw in (name, name.removeprefix(prefix))]
    stored = next((raw for raw in inputs if raw in checkpoint.tensors), None)
    if stored is None or own not in checkpoint.tensors:
        return
    if not torch.equal(checkpoint.read(own), checkpoint.read(stored)):
        output.weight = nn.Parameter(torch.empty_like(table))


def _weights_lie_in(folder: Path) -> bool:
    inside = model_folder(folder)
    return any((inside / name).is_file() for name in WEIGHT_FILES)


def _remote(config: PretrainedConfig) -> dict[str, str]:
    """The classes that a config names as Python code in its folder."""
    return getattr(config, "auto_map", None) or {}


def _halves(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Encoder and decoder of a model whose base has both, each with transformer blocks."""
    base = getattr(model, "base_model", model)
    halves = getattr(base, "encoder", None), getattr(base, "decoder", None)
    encoder, decoder = halves
    if not isinstance(encoder, nn.Module) or not isinstance(decoder, nn.Module):
        return None
    return (encoder, decoder) if _lists(encoder) and _lists(decoder) else None


def _within(model: nn.Module, part: nn.Module) -> tuple[str, nn.ModuleList]:
    above = next(path for path, module in model.named_modules() if module is part)
    path, layers = _blocks(part)
    return f"{above}.{path}", layers


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = _lists(model)
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


def _lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(_has_matrix(member) for member in module)
    ]


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
