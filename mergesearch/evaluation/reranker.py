"""`Reranker`: one resident model with its head, fed with planned batches of pairs.

Its raw scores, logits, are what is interpolated between merges; `activated` makes of them what is ranked and fused.
Weights may be overwritten in place between calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor

from mergesearch.errors import EvaluationError, SourceError
from mergesearch.evaluation.inputs import Features, InputFormat
from mergesearch.evaluation.joining import Form, Lengths
from mergesearch.evaluation.loading import check_length, no_progress_bar, positions, set_attention
from mergesearch.evaluation.memory import is_out_of_memory
from mergesearch.evaluation.pairing import plan_pairs
from mergesearch.evaluation.planned import DTYPES, OnBatch, PlannedModel
from mergesearch.evaluation.reranker_files import RerankerFiles, read_reranker_files
from mergesearch.evaluation.rerankers import Family, Reading, detect_family
from mergesearch.evaluation.tokens import BATCH_TOKENS
from mergesearch.sources.layout import canonical_parameters
from mergesearch.sources.locate import model_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mergesearch.evaluation.pairs import PairPlan
    from mergesearch.evaluation.rerank_settings import RerankSettings
    from mergesearch.sources.layout import Head

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda logits: logits,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": torch.nn.functional.logsigmoid,
    "tanh": torch.tanh,
}
"""What may be applied to raw scores. All rise, so none changes a ranking, but they decide what fusion adds."""
_CLASSES = {"identity": "identity", "sigmoid": "sigmoid", "logsigmoid": "log_sigmoid", "tanh": "tanh"}
_LOADERS: dict[Head, str] = {
    "sequence_classification": "AutoModelForSequenceClassification",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "causal_lm": "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class RerankerSettings:
    """How pairs are scored; belongs in the study's record, for every entry moves scores.

    Attributes:
        family: a name in the registry of re-rankers.
        form: the texts around query and document.
        max_length: tokens of a pair.
        max_query_length: tokens of a query before it is paired; None for no limit of its own.
        max_document_length: the same of a document.
        activation: what is applied to raw scores before they are ranked and fused.
        tokens: the tokens for no and yes whose logits are read; None where none are.
        dtype: of weights and arithmetic; the last layer is computed in fp32.
        attention: the implementation of attention that transformers was told to use.
    """

    family: str
    form: Form
    max_length: int
    max_query_length: int | None
    max_document_length: int | None
    activation: str
    tokens: tuple[str, str] | None
    dtype: str
    attention: str


class Reranker(PlannedModel):
    """Pairs to scores under the weights the model holds at the moment. Made by `open_reranker`.

    Attributes:
        model: of transformers, with its head.
        tokenizer: its tokenizer.
        family: what it is.
        settings: how it scores.
    """

    def __init__(
        self, model: Any, tokenizer: Any, family: Family, reading: Reading, settings: RerankerSettings
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.family = family
        self.settings = settings
        self._score = reading.score
        takes = signature(model.forward).parameters
        self._takes_types = "token_type_ids" in takes
        self._takes_positions = family.causal and "position_ids" in takes
        left = family.causal or tokenizer.padding_side == "left"
        pad_id = tokenizer.pad_token_id
        super().__init__(canonical_parameters(model), InputFormat(pad_id=0 if pad_id is None else pad_id, left=left))

    @property
    def transformer(self) -> Any:
        """See the base class."""
        return self.model

    @property
    def output_shape(self) -> tuple[int, ...]:
        """See the base class: one score."""
        return ()

    def describe(self) -> RerankerSettings:
        """The settings, for the study's record."""
        return self.settings

    def plan_pairs(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        pairs: NDArray[np.int64],
        *,
        batch_tokens: int = BATCH_TOKENS,
        store: Path | None = None,
    ) -> PairPlan:
        """Tokenise the texts that stand in pairs, each once, and plan the pairs' batches, once for all trials.

        Args:
            queries: texts, without templates.
            documents: the same.
            pairs: positions in `queries` and `documents`, int64 [P, 2].
            batch_tokens: most padded tokens per batch.
            store: folder for the token ids of documents that outgrow memory; see `make_plan`.

        Raises:
            EvaluationError: a template leaves no room for texts, or a pair has no tokens.
        """
        settings = self.settings
        return plan_pairs(
            self.tokenizer,
            settings.form,
            queries,
            documents,
            np.asarray(pairs, dtype=np.int64).reshape(-1, 2),
            Lengths(settings.max_length, settings.max_query_length, settings.max_document_length),
            batch_tokens=batch_tokens,
            takes_types=self._takes_types,
            store=store,
            note=self.notes.append,
        )

    def logits(self, plan: PairPlan, on_batch: OnBatch | None = None) -> Tensor:
        """Raw scores of all pairs in their order, fp32 [P]; see `outputs`."""
        return self.outputs(plan, on_batch)

    def activated(self, logits: Tensor) -> Tensor:
        """What raw scores are ranked and fused by, fp32, of the same shape."""
        return ACTIVATIONS[self.settings.activation](logits.float())

    def call(self, inputs: Features) -> Tensor:
        """See the base class."""
        if self._takes_positions:
            before = inputs["attention_mask"].cumsum(dim=1) - 1
            inputs = {**inputs, "position_ids": before.clamp(min=0)}
        return self._score(inputs).float()

    def probe(self) -> PairPlan:
        """See the base class."""
        return self.plan_pairs(["a b c", "a"], ["b", "c a"], np.array([[0, 0], [1, 1]]))


def open_reranker(
    folder: Path,
    settings: RerankSettings,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    max_query_length: int | None = None,
    max_document_length: int | None = None,
    attention: str = "auto",
    trust_remote_code: bool = False,
    gpus: int = 1,
) -> Reranker:
    """Load a re-ranker with the lengths, texts and activation that its own files state.

    Args:
        folder: a model folder with a tokenizer; files of a `CrossEncoder` fill in whatever is not given.
        settings: what the study says.
        dtype: `float32`, `bfloat16` or `float16`; weights are loaded in it directly.
        device: a torch device.
        max_query_length: tokens of a query before it is paired.
        max_document_length: the same of a document.
        attention: an implementation of attention; see `set_attention`.
        trust_remote_code: run Python code that lies in the folder.
        gpus: must be 1.

    Raises:
        SourceError: the folder does not load, has no head, or does not say how it scores pairs.
        EvaluationError: what is asked for is not to be had with this model.
    """
    if dtype not in DTYPES:
        raise EvaluationError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    if gpus > 1:
        raise EvaluationError("a re-ranker lies on one GPU: leave out `workers.gpus`, or write `gpus: 1`.")
    family = detect_family(folder, settings.family)
    files = read_reranker_files(folder)
    model, tokenizer = _load(folder, family, DTYPES[dtype], device, trust_remote_code)
    reading = family.open(model, tokenizer, settings, files)
    resolved = RerankerSettings(
        family=family.name,
        form=family.form(settings, files),
        max_length=_max_length(model, settings, files, family),
        max_query_length=max_query_length or family.max_query_length,
        max_document_length=max_document_length or family.max_document_length,
        activation=_activation(family.activation(files)),
        tokens=reading.tokens,
        dtype=dtype,
        attention=set_attention(model, attention),
    )
    reranker = Reranker(model, tokenizer, family, reading, resolved)
    reranker.probe()  # says what is wrong with templates and lengths now
    return reranker


def _load(folder: Path, family: Family, dtype: torch.dtype, device: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model and tokenizer.

    Raises:
        SourceError: the folder does not load, or lacks weights, which would be random.
    """
    if family.head is None:
        raise EvaluationError(f"models of family {family.name} have no head.")
    inside = model_folder(folder)
    given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    try:
        with no_progress_bar(), torch.random.fork_rng(devices=[]):
            loader = getattr(transformers, _LOADERS[family.head])
            model, loaded = loader.from_pretrained(inside, dtype=dtype, output_loading_info=True, **given)
            tokenizer = transformers.AutoTokenizer.from_pretrained(inside, **given)
    except (OSError, ValueError, RuntimeError) as error:  # the last where shapes are not those of config.json
        if is_out_of_memory(error):
            raise
        raise SourceError([f"{folder} does not load as {family.title}: {error}"]) from error
    if missing := sorted(loaded["missing_keys"]):
        named = f"{', '.join(missing[:4])}{', …' if len(missing) > 4 else ''}"
        message = (
            f"{folder} lacks weights of {family.title}: {named}. Take a template that was trained to re-rank; "
            "`mergesearch train-reranker` makes one from an encoder."
        )
        raise SourceError([message])
    if tokenizer.pad_token_id is None and not family.causal:
        raise SourceError([f"the tokenizer of {folder} has no padding token: name one in tokenizer_config.json."])
    return model.eval().requires_grad_(False).to(device), tokenizer


def _max_length(model: Any, settings: RerankSettings, files: RerankerFiles, family: Family) -> int:
    """Tokens of a pair: the study's word, the files', the family's, or as many as the model has positions."""
    there = positions(model)
    if settings.max_length is not None:
        check_length(model, settings.max_length)
        return settings.max_length
    stated = files.max_length or family.max_length or there or model.config.get_text_config().max_position_embeddings
    return min(stated, there or stated)


def _activation(name: str) -> str:
    """The name in `ACTIVATIONS` of an activation or of torch's class for it (`torch.nn.modules.linear.Identity`)."""
    known = name if name in ACTIVATIONS else _CLASSES.get(name.rpartition(".")[2].lower())
    if known is None:
        raise EvaluationError(
            f"config.json asks for the activation {name}, which is not one of {', '.join(ACTIVATIONS)}. Write a known "
            "one under `sentence_transformers: activation_fn`."
        )
    return known
