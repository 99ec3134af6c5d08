"""`Encoder`: one resident sentence-transformers model, fed with planned batches of token ids.

The forward pass is sentence-transformers' own, so embeddings are those of `SentenceTransformer.encode`; only
tokenising and batching are taken out of the trial. Weights may be overwritten in place between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mergesearch.errors import EvaluationError, MemoryFullError
from mergesearch.evaluation.inputs import Features, InputFormat, features, on_device, to_device
from mergesearch.evaluation.loading import (
    apply,
    check_attention,
    check_length,
    choose_attention,
    end_tokens,
    first_position,
    load,
)
from mergesearch.evaluation.memory import is_out_of_memory, release
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
from mergesearch.sources.layout import find_layers, read_layout

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mergesearch.evaluation.prefix import PrefixReuse

OnBatch = Callable[[], None]

_PIECE = 1000
"""Texts tokenised at a time."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FEATURES = {"input_ids", "attention_mask", "token_type_ids", "modality", "prompt_length"}


class Encoder:
    """Texts to embeddings under the weights the model holds at the moment. Made by `open_encoder`.

    Not safe for use from several threads. Equal weights, plan, dtype, device type and thread count give equal
    embeddings to the bit.

    Attributes:
        model: the `SentenceTransformer`; its first module is a `Transformer`.
        settings: how it encodes.
        end_tokens: ids that a text must end in; empty when that does not matter.
        parameters: name to live parameter of the transformer inside, tied ones once. Overwrite in place.
        notes: what was out of the ordinary since the list was last cleared, such as a batch that was split.
        layer_tokens: useful tokens times the transformer layers that were run for them, since it was last set.
        reuse: what keeps hidden states for merges that are equal in their lower layers; None when nothing does.
        most_tokens: padded tokens of the largest batch that is tried, since a larger one did not fit into memory; None
            while everything did. A planned batch beyond it is halved until it is not: plans stay as they are.
        out_of_memory: how often memory ran out, since it was last set.
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
        self.parameters: Mapping[str, Tensor] = dict(model[0].model.named_parameters())
        self.notes: list[str] = []
        self.layer_tokens = 0
        self.reuse: PrefixReuse | None = None
        self.most_tokens: int | None = None
        self.out_of_memory = 0
        self._tokenizer = model[0].tokenizer
        self._form = InputFormat(
            pad_id=self._tokenizer.pad_token_id,
            left=self._tokenizer.padding_side == "left",
            unpadded=unpadded,
            first_position=first_position(model),
        )

    @property
    def device(self) -> torch.device:
        """Where texts go in and embeddings come out: where the weights are, or the first of them on several devices."""
        return next(iter(self.parameters.values())).device

    @cached_property
    def layers(self) -> tuple[torch.nn.Module, ...]:
        """The transformer blocks, in the order in which they run."""
        return tuple(find_layers(self.model[0].model)[1])

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
        check_length(self.model, max_length)
        prompt_length, modality = self._how_called(prompt, kind, max_length)
        pieces = (
            self._tokenize(texts[start : start + _PIECE], prompt, kind, max_length)
            for start in range(0, len(texts), _PIECE)
        )
        return make_plan(pieces, batch_tokens=batch_tokens, prompt_length=prompt_length, modality=modality, store=store)

    def encode(self, plan: TokenPlan, on_batch: OnBatch | None = None) -> Tensor:
        """Embeddings of all texts in their order, fp32 [N, E], on the model's device.

        Raises:
            MemoryFullError: one text alone does not fit into memory.
        """
        embeddings = torch.empty(plan.n_texts, self.settings.dimensions, device=self.device)
        for rows, part in self.chunks(plan, plan.n_texts, on_batch):
            embeddings[to_device(torch.from_numpy(rows), self.device)] = part
        return embeddings

    def chunks(
        self, plan: TokenPlan, most_texts: int, on_batch: OnBatch | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Embeddings of at most `most_texts` texts (or one batch) at a time.

        Yields:
            Positions of the texts, int64 [C], and their embeddings, fp32 [C, E].

        Raises:
            MemoryFullError: one text alone does not fit into memory.
        """
        for numbers in plan.chunks(most_texts):
            batches = [plan.batches[number] for number in numbers]
            parts = []
            for batch, inputs in zip(batches, self.inputs(plan, batches), strict=True):
                parts.append(self._encode(plan, batch, inputs))
                if on_batch is not None:
                    on_batch()
            yield np.concatenate(batches), torch.cat(parts)

    def encode_batch(self, plan: TokenPlan, texts: NDArray[np.int64]) -> Tensor:
        """Embeddings of the named texts as one batch, fp32 [B, E].

        Where memory runs out, hidden states kept for later trials make room first. Then the batch is halved until it
        fits, and so is every later one of its size; `notes` says so.

        Raises:
            MemoryFullError: one text alone does not fit into memory.
        """
        return self._encode(plan, texts, next(self.inputs(plan, [texts])))

    def inputs(self, plan: TokenPlan, batches: Iterable[NDArray[np.int64]]) -> Iterator[Features]:
        """What the model is called with for each batch, on its device; see `on_device`."""
        return on_device((features(plan, texts, self._form) for texts in batches), self.device)

    def _encode(self, plan: TokenPlan, texts: NDArray[np.int64], inputs: Features) -> Tensor:
        count, longest = len(texts), int(plan.lengths[texts].max())
        if self.most_tokens is not None and count > 1 and count * longest > self.most_tokens:
            self.notes.append(f"a batch was split: {self.most_tokens:,} tokens are the most that fitted into memory")
            halves = np.split(texts, [count // 2])
            return torch.cat([self.encode_batch(plan, half) for half in halves])
        try:
            return self._forward(plan, texts, inputs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory += 1
            # What is kept for later must not decide how a batch is split.
            made_room = self.reuse is not None and self.reuse.cache.give_way()
            if count == 1 and not made_room:
                raise MemoryFullError(
                    f"a single text of {longest} tokens does not fit into the memory of {self.device}. Give "
                    "a smaller maximum length, or a device with more memory."
                ) from error
        # Only here, past the handler, are the failed attempt's tensors free.
        release()
        self.notes.append(f"memory ran out over a batch of {count} × {longest} tokens")
        if made_room:
            self.notes.append("hidden states of earlier trials were given up for want of memory")
        else:
            self.most_tokens = (count + 1) // 2 * longest
        return self.encode_batch(plan, texts)

    @torch.inference_mode()
    def _forward(self, plan: TokenPlan, texts: NDArray[np.int64], inputs: Features) -> Tensor:
        with nullcontext(0) if self.reuse is None else self.reuse.batch(plan, texts) as known_layers:
            # A copy, for modules leave their results in it: a batch that failed would hold on to memory.
            embeddings: Tensor = self.model(dict(inputs))["sentence_embedding"]
        self.layer_tokens += int(plan.lengths[texts].sum()) * (len(self.layers) - known_layers)
        return embeddings[:, : self.settings.dimensions].float()

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
