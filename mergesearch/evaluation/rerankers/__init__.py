"""Families of re-rankers, one file each: how a pair becomes tokens, and how a model's logits become one score.

Dropping a file into this folder is all it takes to add one; tests/conformance/test_rerankers.py runs over the registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from mergesearch.errors import EvaluationError, SourceError, unknown
from mergesearch.evaluation.inputs import Features
from mergesearch.evaluation.reranker_files import RerankerFiles, read_reranker_files

if TYPE_CHECKING:
    from pathlib import Path

    from mergesearch.evaluation.joining import Form
    from mergesearch.evaluation.rerank_settings import RerankSettings
    from mergesearch.sources.layout import Head

Score = Callable[[Features], Tensor]
"""From a batch to the raw scores of its pairs, fp32 [B]. `seconds` in a batch are not the model's: see `PairPlan`."""


@dataclass(frozen=True)
class Reading:
    """How a loaded model is read.

    Attributes:
        score: the forward pass and what is made of its logits.
        tokens: the tokens for no and yes whose logits are read; None where none are.
    """

    score: Score
    tokens: tuple[str, str] | None = None


class Family(ABC):
    """What models of one kind have in common. Objects hold no state.

    Raw scores should be as linear in the weights as can be, for they are interpolated; what is ranked and fused is
    the family's `activation` of them.

    Attributes:
        name: in the registry.
        title: in words.
        head: what the model ends in.
        causal: texts are read from left to right only: padding goes before them, with positions counted past it.
        max_length: tokens of a pair where no file says it; None for the model's number of positions.
        max_query_length: tokens of a query before it is paired, where nobody says it; None for no limit.
        max_document_length: the same of a document.
        reads: the settings that replace what is the family's own.
    """

    name: str = ""
    title: ClassVar[str]
    head: ClassVar[Head | None]
    causal: ClassVar[bool] = False
    max_length: ClassVar[int | None] = None
    max_query_length: ClassVar[int | None] = None
    max_document_length: ClassVar[int | None] = None
    reads: ClassVar[frozenset[str]] = frozenset({"template"})

    @abstractmethod
    def recognises(self, files: RerankerFiles) -> bool:
        """Whether files say that they are of this family."""

    @abstractmethod
    def form(self, settings: RerankSettings, files: RerankerFiles) -> Form:
        """How a query and a document are put to the tokenizer: the study's word, else the family's own."""

    def check_template(self, template: str) -> None:  # noqa: B027 - most take any
        """Refuse a template that the family cannot score with.

        Raises:
            EvaluationError: it is such.
        """

    @abstractmethod
    def activation(self, files: RerankerFiles) -> str:
        """Name of what is applied to raw scores, in `reranker.ACTIVATIONS`."""

    @abstractmethod
    def open(self, model: Any, tokenizer: Any, settings: RerankSettings, files: RerankerFiles) -> Reading:
        """How a loaded model is read.

        Raises:
            EvaluationError: it does not put out what the family needs.
        """


FAMILIES: dict[str, Family] = {}

_Family = TypeVar("_Family", bound=type[Family])


def family(name: str) -> Callable[[_Family], _Family]:
    """Register a `Family` under a name."""

    def register(cls: _Family) -> _Family:
        FAMILIES[name] = cls()
        FAMILIES[name].name = name
        return cls

    return register


def get_family(name: str) -> Family:
    """The family of a name.

    Raises:
        EvaluationError: there is none of that name.
    """
    if name not in FAMILIES:
        raise EvaluationError(unknown("family of re-rankers", name, FAMILIES))
    return FAMILIES[name]


def detect_family(folder: Path, wanted: str | None) -> Family:
    """The family that is wanted, or the one that a model's files say it is of; weights are not read.

    Raises:
        EvaluationError: no family has the wanted name.
        SourceError: the files do not say it; the message lists what they say and what to write.
    """
    if wanted is not None:
        return get_family(wanted)
    files = read_reranker_files(folder)
    found = [known for known in FAMILIES.values() if known.recognises(files)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{name} ({known.title})" for name, known in sorted(FAMILIES.items()))
    said = files.architecture or "nothing"
    message = (
        f"{folder} does not say how it scores pairs (config.json, architectures: {said}; model_type: "
        f"{files.model_type or 'nothing'}). Take a model that was trained to re-rank (`mergesearch train-reranker` "
        f"makes one from an encoder), or name its family, `evaluation: rerank: family:`, one of {known}."
    )
    raise SourceError([message])


def reads_leftwards(files: RerankerFiles) -> bool:
    """Whether a model's tokens see only those before them: it is a language model, and no masked one."""
    return files.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        files.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def tensors(inputs: Features) -> dict[str, Tensor]:
    """What of a batch goes into the model."""
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def kept_logits(model: Any, positions: int) -> dict[str, int]:
    """The argument that has a language model compute logits of the last positions only, where it knows one."""
    return {"logits_to_keep": positions} if "logits_to_keep" in signature(model.forward).parameters else {}


def answer_ids(tokenizer: Any, answers: Sequence[str], before: str) -> list[int]:
    """Ids of the tokens that answers are, where they stand behind a text.

    An answer is a token of the vocabulary (`▁true`) or, better, a word that is one token there.

    Raises:
        EvaluationError: one is several tokens there.
    """
    context = tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
    found = []
    for answer in answers:
        behind = tokenizer(before + answer, add_special_tokens=False)["input_ids"][len(context) :]
        named = tokenizer.get_vocab().get(answer)
        if len(behind) != 1 and named is None:
            pieces = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(behind)))
            raise EvaluationError(
                f"the answer {answer!r} is not one token of this tokenizer but {pieces}. Name tokens that the model "
                "was trained to answer with: `evaluation: rerank: tokens: [no, yes]`."
            )
        found.append(behind[0] if len(behind) == 1 else named)
    return found


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
