"""`Encoder`: one resident sentence-transformers model, fed with planned batches of token ids.

The forward pass is sentence-transformers' own, so embeddings are those of `SentenceTransformer.encode`; only
tokenising and batching are taken out of the trial. Weights may be overwritten in place between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.inputs import Features, InputFormat
from mergesearch.evaluation.loading import (
    apply,
    check_attention,
    check_length,
    choose_attention,
    end_tokens,
    first_position,
    load,
)
from mergesearch.evaluation.planned import DTYPES, OnBatch, PlannedModel
from mergesearch.evaluation.settings import (
    Choices,
    EncodingSettings,
    Kind,
    lengths,
    resolve,
    stated_prompts,
)
from mergesearch.evaluation.spread import devices, spread
from mergesearch.evaluation.tokens import BATCH_TOKENS, TokenizedTexts, TokenPlan, make_plan
from mergesearch.sources.layout import read_layout

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_PIECE = 1000
"""Texts tokenised at a time."""

_PROBES = ("a b c", "a")

_FEATURES = {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length"}


class Encoder(PlannedModel):
    """Texts to embeddings under the weights the model holds at the moment. Made by `open_encoder`.

    Attributes:
        model: the `SentenceTransformer`; its first module is a `Transformer`.
        settings: how it encodes.
        end_tokens: ids that a text must end in; empty when that does not matter.
    """

    def __init__(
        self,
        model: Any,
        settings: EncodingSettings,
        *,
        end_tokens: frozenset[int] = frozenset(),
        start_token: int | None = None,
        unpadded: bool = False,
    ) -> None:
        self.model = model
        self.settings = settings
        self.end_tokens = end_tokens
        self.start_token = start_token
        self._tokenizer = model[0].tokenizer
        form = InputFormat(
            pad_id=self._tokenizer.pad_token_id,
            left=self._tokenizer.padding_side == "left",
            unpadded=unpadded,
            first_position=first_position(model[0].model),
        )
        super().__init__(dict(model[0].model.named_parameters()), form)

    @property
    def transformer(self) -> Any:
        """See the base class."""
        return self.model[0].model

    @property
    def output_shape(self) -> tuple[int, ...]:
        """See the base class: (E,)."""
        return (self.settings.dimensions,)

    def describe(self) -> EncodingSettings:
        """The settings, for the study's record."""
        return self.settings

    def prompt(self, kind: Kind) -> str:
        """The template's prompt for a kind of text.

        Raises:
            EvaluationError: its files hold prompts, but none that says it is for this kind.
        """
        prompt = self.settings.prompts[kind]
        if prompt is None:
            names = ", ".join(repr(name) for name, text in self.model.prompts.items() if text)
            raise EvaluationError(
                f"the template has prompts named {names}, and none is said to be for a {kind}. Give the text "
                f"under `prompts: {kind}:` (an empty text for none)."
            )
        return prompt

    def plan(
        self,
        texts: Sequence[str],
        kind: Kind,
        *,
        prompt: str | None = None,
        max_length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        store: Path | None = None,
    ) -> TokenPlan:
        """Tokenise texts and plan their batches, once for all trials.

        Args:
            texts: without prompts.
            kind: which of the template's prompts and lengths to use.
            prompt: put before every text instead of the template's.
            max_length: tokens per text, prompt and special tokens counted, instead of the template's.
            batch_tokens: most padded tokens per batch.
            store: folder for the token ids of corpora that outgrow memory; see `make_plan`.

        Raises:
            EvaluationError: a text has no tokens, does not end as the model's pooling needs, or the length is
                more than the model has positions for.
        """
        prompt = self.prompt(kind) if prompt is None else prompt
        max_length = max_length or self.settings.max_length[kind]
        check_length(self.transformer, max_length)
        prompt_length, modality = self._how_called(prompt, kind, max_length)
        pieces = (
            self._tokenize(texts[start : start + _PIECE], prompt, kind, max_length)
            for start in range(0, len(texts), _PIECE)
        )
        return make_plan(pieces, batch_tokens=batch_tokens, prompt_length=prompt_length, modality=modality, store=store)

    def encode(self, plan: TokenPlan, on_batch: OnBatch | None = None) -> Tensor:
        """Embeddings of all texts in their order, fp32 [N, E]; see `outputs`."""
        return self.outputs(plan, on_batch)

    def encode_batch(self, plan: TokenPlan, texts: NDArray[np.int64]) -> Tensor:
        """Embeddings of the named texts as one batch, fp32 [B, E]; see `run_batch`."""
        return self.run_batch(plan, texts)

    def call(self, inputs: Features) -> Tensor:
        """See the base class."""
        # A copy, for modules leave their results in it: a batch that failed would hold on to memory.
        embeddings: Tensor = self.model(dict(inputs))["sentence_embedding"]
        return embeddings[:, : self.settings.dimensions].float()

    def probe(self) -> TokenPlan:
        """See the base class."""
        return self.plan(_PROBES, "document", prompt="")

    def _features(self, texts: Sequence[str], prompt: str, kind: Kind, max_length: int) -> dict[str, Any]:
        """What sentence-transformers makes of a few texts, padded."""
        self.model.max_seq_length = max_length - self.settings.append_eos
        made: dict[str, Any] = dict(self.model.preprocess(list(texts), prompt=prompt or None, task=kind))
        if unexpected := set(made) - _FEATURES:
            raise EvaluationError(f"the model wants inputs that are not planned for: {sorted(unexpected)}.")
        token_types = made.get("token_type_ids")
        if token_types is not None and token_types.any():
            raise EvaluationError("the tokenizer marks segments by token_type_ids, which is not supported.")
        self._form = replace(self._form, token_types=token_types is not None)
        return made

    def _how_called(self, prompt: str, kind: Kind, max_length: int) -> tuple[int | None, str]:
        made = self._features(["a"], prompt, kind, max_length)
        return None if self.settings.include_prompt else made.get("prompt_length"), made["modality"]

    def _tokenize(self, texts: Sequence[str], prompt: str, kind: Kind, max_length: int) -> TokenizedTexts:
        made = self._features(texts, prompt, kind, max_length)
        mask = made["attention_mask"].bool()
        ids = made["input_ids"][mask].numpy().astype(np.int32)
        lengths = mask.sum(dim=1).numpy()
        if not lengths.all():
            raise EvaluationError(f"text {texts[int(lengths.argmin())]!r} has no tokens, so it cannot be encoded.")
        if self.settings.append_eos:
            ids, lengths = _append(ids, lengths, self._tokenizer.eos_token_id)
        self._check_special_tokens(ids, lengths)
        return TokenizedTexts(ids, lengths)

    def _check_special_tokens(self, ids: NDArray[np.int32], lengths: NDArray[np.int64]) -> None:
        """Some tokenizers lose special tokens that the model was trained with in transformers 5."""
        ends = np.cumsum(lengths)
        last = ids[ends - 1]
        if self.end_tokens and not np.isin(last, list(self.end_tokens)).all():
            found = self._tokenizer.convert_ids_to_tokens(int(last[~np.isin(last, list(self.end_tokens))][0]))
            raise EvaluationError(
                f"this model reads a text off its end token, but the tokenizer ends a text with {found!r}: "
                "scores would be far too low. `append_eos: true` appends the end token, `append_eos: false` "
                "accepts texts without one."
            )
        if self.start_token is not None and (ids[ends - lengths] != self.start_token).any():
            raise EvaluationError(
                "the tokenizer's file promises a start token (add_bos_token), but texts come out without it. "
                "Use the transformers version the model was published with, or save its tokenizer anew."
            )


def open_encoder(
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    pooling: str | None = None,
    normalize: bool | None = None,
    similarity: str | None = None,
    max_length: int | None = None,
    append_eos: bool | None = None,
    attention: str = "auto",
    trust_remote_code: bool = False,
    gpus: int = 1,
) -> Encoder:
    """Load a retriever with the pooling, normalisation, prompts and lengths that its own files state.

    Args:
        folder: a model folder; its sentence-transformers files fill in whatever is not given here.
        dtype: `float32`, `bfloat16` or `float16`; weights are loaded in it directly.
        device: a torch device.
        pooling: a pooling mode, instead of the files'.
        normalize: whether embeddings are scaled to length 1, instead of the files'.
        similarity: `cosine` or `dot`, instead of the files'.
        max_length: tokens per text, instead of the files'.
        append_eos: for models that read a text off its end token: append it where the tokenizer does not
            (True), or accept texts without one (False). By default such a tokenizer is an error.
        attention: an implementation of attention; see `choose_attention`.
        trust_remote_code: run Python code that lies in the folder.
        gpus: over how many devices the model's layers are spread.

    Raises:
        SourceError: the folder does not load, or does not say how texts are encoded (lists every gap).
        EvaluationError: the tokenizer or the installed transformers would not encode as in training.
    """
    if dtype not in DTYPES:
        raise EvaluationError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    choices = Choices(pooling, normalize, similarity, max_length)
    resolved = resolve(folder, choices)
    names = devices(device, gpus)
    model = load(folder, DTYPES[dtype], "cpu" if gpus > 1 else device, trust_remote_code)
    include_prompt = apply(model, resolved)
    if gpus > 1:
        spread(model, read_layout(folder, trust_remote_code=trust_remote_code), names)
    chosen, unpadded = choose_attention(model, attention)
    settings = EncodingSettings(
        pooling=resolved.pooling,
        normalize=resolved.normalize,
        similarity=resolved.similarity,
        prompts=stated_prompts(resolved.files),
        max_length=lengths(model, choices),
        include_prompt=include_prompt,
        append_eos=bool(append_eos),
        dimensions=model.truncate_dim or model.get_embedding_dimension(),
        dtype=dtype,
        attention=chosen,
    )
    model[0].query_length = model[0].document_length = None  # Lengths are given per plan from here on.
    tokenizer = model[0].tokenizer
    reads_end = "lasttoken" in resolved.pooling or "eos" in resolved.files.adds
    encoder = Encoder(
        model,
        settings,
        end_tokens=frozenset(end_tokens(model)) if reads_end and append_eos is not False else frozenset(),
        start_token=tokenizer.bos_token_id if "bos" in resolved.files.adds else None,
        unpadded=unpadded,
    )
    probe = encoder.plan(["a b", "a c"], "document", prompt="")
    check_attention(model, *probe.padded(np.arange(2), pad_id=tokenizer.pad_token_id, left=False))
    return encoder


def _append(
    ids: NDArray[np.int32], lengths: NDArray[np.int64], token: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Put `token` behind every text that does not end in it."""
    ends = np.cumsum(lengths)
    lacking = ids[ends - 1] != token
    return np.insert(ids, ends[lacking], token), lengths + lacking
