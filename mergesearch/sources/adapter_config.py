"""What adapter_config.json says: what kind of adapter it is, how its product is scaled, which model it belongs to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PositiveInt, ValidationError, field_validator

from mergesearch.errors import SourceError
from mergesearch.sources.locate import ADAPTER_CONFIG, locate

_Number = TypeVar("_Number", int, float)
_Flag = Annotated[bool, BeforeValidator(bool)]  # null is false

_MERGE_FIRST = (
    "Merge it into its base with peft (`model.merge_and_unload().save_pretrained(...)`) and give that folder."
)
_NAME_THE_BASE = "List the base as a source of its own and name that source here: `adapter_of: SOURCE`."
_WITHOUT_EFFECT = frozenset(
    """
    auto_mapping bias corda_config ensure_weight_tying eva_config exclude_modules inference_mode layers_pattern
    layers_to_transform loftq_config lora_dropout lora_ga_config megatron_core modules_to_save peft_type peft_version
    qalora_group_size target_modules task_type velora_config
    """.split()  # noqa: SIM905 (a list literal would be twenty lines)
)
"""Settings of training, and settings whose effect is read off the tensors themselves."""


class AdapterConfig(BaseModel):
    """The settings of an adapter that decide its weights."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    peft_type: Literal["LORA"]
    """rsLoRA and DoRA are LoRA to PEFT."""
    r: PositiveInt = 8
    """Rank, where `rank_pattern` has no other."""
    lora_alpha: float = 8
    """α, where `alpha_pattern` has no other."""
    rank_pattern: Annotated[dict[str, PositiveInt], BeforeValidator(lambda found: found or {})] = {}
    """Regular expressions for the ends of module names, to their ranks; the first that matches counts."""
    alpha_pattern: Annotated[dict[str, float], BeforeValidator(lambda found: found or {})] = {}
    """The same for α."""
    use_rslora: _Flag = False
    """The scale is α/√r (rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732) and not α/r."""
    use_dora: _Flag = False
    """The sum is scaled to a learned magnitude (DoRA, Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""
    fan_in_fan_out: _Flag = False
    """Linear layers store their weights as [in, out]."""
    init_lora_weights: Literal[True, False, "gaussian", "eva", "mica", "orthogonal"] | None = True
    """The others (pissa, olora, corda, loftq, …) change the base's weights before training."""
    base_model_name_or_path: str | None = None
    revision: str | None = None
    """Branch, tag or commit of a base on the hub."""

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _compiles(cls, patterns: dict[str, float]) -> dict[str, float]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
        return patterns

    def rank(self, module: str) -> int:
        """The rank of a module, named as in the model that was trained."""
        return _matching(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """What the product B·A of a module is multiplied with."""
        rank, alpha = self.rank(module), _matching(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def locate_base(self, relative_to: Path | None = None) -> Path:
        """The folder of the model that the adapter names as its base.

        Args:
            relative_to: what a relative folder starts from.

        Raises:
            SourceError: it names none, or none that can be found.
        """
        base = self.base_model_name_or_path
        if not base:
            raise SourceError([f"{ADAPTER_CONFIG} does not say which model the adapter belongs to. {_NAME_THE_BASE}"])
        local = ((relative_to or Path()) / Path(base).expanduser()).is_dir()
        try:
            return locate(base, revision=None if local else self.revision, relative_to=relative_to)
        except SourceError as error:
            message = f"the adapter's base {base!r} (says {ADAPTER_CONFIG}) was not found: {error} {_NAME_THE_BASE}"
            raise SourceError([message]) from None


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The settings of the adapter in `folder`.

    Raises:
        SourceError: it cannot be read, or names everything in it that cannot be applied.
    """
    try:
        content = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError([f"holds no adapter (no {ADAPTER_CONFIG}). A whole model needs no `adapter_of:`."]) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SourceError([f"{ADAPTER_CONFIG} is not valid JSON: {error}."]) from None
    if not isinstance(content, dict):
        raise SourceError([f"{ADAPTER_CONFIG} holds a {type(content).__name__}, expected an object."])
    try:
        config = AdapterConfig.model_validate(content)
    except ValidationError as error:
        wrong = {str(e["loc"][0]): e["msg"].removeprefix("Value error, ") for e in error.errors()}
        raise SourceError([_explain(name, content.get(name), message) for name, message in wrong.items()]) from None
    active = {name: value for name, value in (config.model_extra or {}).items() if value}
    problems = [
        f"{ADAPTER_CONFIG}: {name} is {value!r}, and what that does to the weights is not known here. {_MERGE_FIRST}"
        for name, value in active.items()
        if name not in _WITHOUT_EFFECT
    ]
    if problems:
        raise SourceError(problems)
    return config


def _explain(name: str, found: object, message: str) -> str:
    if name == "peft_type":
        return f"is a PEFT adapter of type {found!r}; what can be applied is LoRA, rsLoRA and DoRA. {_MERGE_FIRST}"
    if name == "init_lora_weights":
        return (
            f"{ADAPTER_CONFIG}: init_lora_weights is {found!r}, which changed the base's weights before training. "
            "Convert it with peft (`save_pretrained(…, path_initial_model_for_weight_conversion=…)`)."
        )
    return f"{ADAPTER_CONFIG}: {name}: {message[:1].lower()}{message[1:]}, found {found!r}."


def _matching(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """The value of the first pattern that a name, or its end after a dot, matches: as PEFT does it."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default)
