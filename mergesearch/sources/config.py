"""Model configs: reading them, and which differences between them forbid a merge."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PretrainedConfig

from mergesearch.errors import SourceError
from mergesearch.sources.locate import model_folder

if TYPE_CHECKING:
    from pathlib import Path

_MATTERS = re.compile(
    r"model_type|hidden_size|d_model|dim|d_kv|d_ff|head_dim|n_heads?|num_\w*heads"
    r"|activation(_function)?|hidden_act(ivation)?|\w+_act_fn|feed_forward_proj|is_gated_act"
    r"|\w*(eps|epsilon)|\w*rope\w*|\w*rotary\w*|position_embedding_type|relative_attention_\w+"
    r"|sinusoidal_pos_embds|query_pre_attn_scalar|attn_logit_softcapping"
)
"""Config entries that change what the same weights compute. Attention windows, masks and dropout are not:
fine-tuned relatives often differ there, and a merge runs with the template's."""


def load_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a model folder as transformers reads it, with defaults filled in.

    Raises:
        SourceError: there is no config.json, it is broken, or this transformers does not know the model type.
    """
    inside = model_folder(folder)
    try:
        return AutoConfig.from_pretrained(inside, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:300]
        if not trust_remote_code and "trust_remote_code" in str(error):
            first = (
                "it needs Python code that lies in the folder (`auto_map`). Read that code; if you trust it, write "
                "`trust_remote_code: true` under the source."
            )
        raise SourceError([f"config.json in {str(inside)!r} cannot be used: {first}"]) from error


def refuse_foreign_modules(folder: Path) -> None:
    """Refuse a sentence-transformers folder whose modules.json names classes that are not sentence-transformers' own.

    Importing one runs its code, which versions before 6 do unasked for every folder of this machine; a model that was
    downloaded from the hub is one.

    Raises:
        SourceError: naming the classes.
    """
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        foreign = [str(m["type"]) for m in listed if not str(m["type"]).startswith("sentence_transformers.")]
    except (OSError, ValueError, LookupError, TypeError):
        return  # there is none, or loading says what is wrong with it
    if foreign:
        message = (
            f"modules.json in {str(folder)!r} names Python code that is not part of sentence-transformers: "
            f"{', '.join(foreign)}. Read that code; a source of a study may say `trust_remote_code: true`."
        )
        raise SourceError([message])


def config_differences(template: PretrainedConfig, other: PretrainedConfig) -> list[str]:
    """What in `other` would compute something else from the same weights, one line each.

    Entries that only one of them has are skipped: transformers adds and drops entries between versions.
    """
    mine, theirs = _text_entries(template), _text_entries(other)
    return [
        f"config {key!r} is {theirs[key]!r}, the template's is {mine[key]!r}."
        for key in mine
        if _MATTERS.fullmatch(key) and key in theirs and theirs[key] != mine[key]
    ]


def _text_entries(config: PretrainedConfig) -> dict[str, Any]:
    entries: dict[str, Any] = config.get_text_config(encoder=True).to_dict()
    return entries
