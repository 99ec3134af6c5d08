"""LoRA adapters of kilobytes, written as PEFT writes them, without PEFT."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RANK, ALPHA = 4, 6


def make_adapter(
    base: Path, folder: Path, *, modules: Sequence[str], prefix: str = "", seed: int = 0, **config: Any
) -> Path:
    """Write a LoRA adapter of random numbers for every linear layer of `base` whose name ends like one of `modules`.

    Args:
        base: one safetensors file.
        folder: is made.
        modules: ends of names.
        prefix: what the trained model puts before the names of the base's file.
        seed: of the numbers.
        config: entries of adapter_config.json that differ; None removes one.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for raw, weight in load_file(base / "model.safetensors").items():
        module = raw.removesuffix(".weight")
        if module != raw and module.endswith(tuple(modules)):
            key = f"base_model.model.{prefix}{module}"
            outputs, inputs = weight.shape
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator) * 0.2
            tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, RANK, generator=generator) * 0.2
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": [*modules],
        "lora_dropout": 0.05,
        **config,
    }
    write_config(folder, {name: value for name, value in content.items() if value is not None})
    return folder


def write_config(folder: Path, content: object) -> None:
    """Write adapter_config.json."""
    (folder / "adapter_config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
