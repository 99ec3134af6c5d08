"""LoRA, rsLoRA and DoRA adapters by PEFT: where they go, and the folder that is left of them.

LoRA: Hu et al. 2022, https://arxiv.org/abs/2106.09685. rsLoRA: Kalajdzievski 2023, https://arxiv.org/abs/2312.03732.
DoRA: Liu et al. 2024, https://arxiv.org/abs/2402.09353.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from mergesearch.errors import MergesearchError, SourceError
from mergesearch.sources.layout import ATTENTION, MLP, find_layers, placed_component
from mergesearch.training import harness

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

AdapterKind = Literal["dora", "lora", "rslora"]
KINDS: tuple[AdapterKind, ...] = get_args(AdapterKind)

READ = "read"
"""Projections to queries, keys and values, and those up and down: where RE-AdaptIR puts its adapters."""
ALL = "all"
"""Every linear layer of every transformer block: where Synthesize-Train-Merge puts its adapters."""

_WRITES_ATTENTION = frozenset({"o_proj", "out_proj", "o", "Wo", "out_lin", "dense"})
_GATES = frozenset({"gate_proj", "wi_0"})


@dataclass(frozen=True)
class AdapterSettings:
    """What decides an adapter's shape.

    Attributes:
        kind: `dora`, `lora` or `rslora`.
        rank: r, of every module.
        alpha: α; the product is scaled by α/r, for rsLoRA by α/√r.
        dropout: share of an adapted module's inputs that are dropped in training.
        targets: `read`, `all`, or the ends of module names, separated by commas.
    """

    kind: AdapterKind = "dora"
    rank: int = 32
    alpha: float = 64
    dropout: float = 0.05
    targets: str = READ

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            MergesearchError: naming all of them.
        """
        harness.require_positive(rank=self.rank, alpha=self.alpha)
        if not 0 <= self.dropout < 1:
            raise MergesearchError(f"adapter dropout must be at least 0 and below 1, found {self.dropout}")


def target_modules(encoder: nn.Module, targets: str) -> list[str]:
    """Names of the linear layers in the encoder's transformer blocks that are to be adapted.

    Raises:
        SourceError: none fits; the message names what there is.
    """
    path, blocks = find_layers(encoder)
    found, ends = [], set()
    for number, block in enumerate(blocks):
        for name, module in block.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            end = name.rpartition(".")[2]
            ends.add(end)
            part = placed_component(block, name)
            if targets == ALL:
                wanted = True
            elif targets == READ:
                wanted = (part == ATTENTION and end not in _WRITES_ATTENTION) or (part == MLP and end not in _GATES)
            else:
                wanted = any(name == t or name.endswith(f".{t}") for t in targets.replace(" ", "").split(","))
            if wanted:
                found.append(f"{path}.{number}.{name}")
    if not found:
        there = ", ".join(sorted(ends)) or "none"
        raise SourceError([f"no linear layer fits the targets {targets!r}; linear layers of the blocks: {there}"])
    return found


def adapter_parameters(encoder: nn.Module, settings: AdapterSettings) -> int:
    """Numbers that an adapter of these settings trains; the encoder may be empty (on torch's meta device)."""
    total = 0
    for name in target_modules(encoder, settings.targets):
        linear = encoder.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        total += settings.rank * (linear.in_features + linear.out_features)
        total += linear.out_features if settings.kind == "dora" else 0
    return total


def attach(encoder: PreTrainedModel, settings: AdapterSettings) -> PeftModel:
    """Put an adapter into the encoder, in place; everything else of the encoder is frozen.

    Whatever holds the encoder, such as a model with a head, then runs with the adapter.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_modules(encoder, settings.targets),
        use_dora=settings.kind == "dora",
        use_rslora=settings.kind == "rslora",
        bias="none",
    )
    with warnings.catch_warnings():  # PEFT asks for a property that transformers is about to rename
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(encoder, config)


def save_adapter(model: PeftModel, base: str, out: Path, record: dict[str, Any]) -> Path:
    """Write the adapter as PEFT does, with where it came from beside it, under one rename.

    Args:
        model: what `attach` gave.
        base: where the model that was adapted is to be had: becomes `base_model_name_or_path`.
        out: the folder to make.
        record: stored as `mergesearch_training.json`.

    Raises:
        MergesearchError: when a trained number is not finite.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with harness.appearing(out, trained) as made:
        model.save_pretrained(str(made), save_embedding_layers=False)
        (made / "README.md").unlink(missing_ok=True)  # PEFT's empty form
        file = made / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base
        # A set, to PEFT, and written in the order of its hashes.
        config["target_modules"] = sorted(config["target_modules"])
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(file, made / "adapter_model.safetensors")
        harness.write_record(made, record)
    return out
