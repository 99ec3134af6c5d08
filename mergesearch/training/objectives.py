"""What a language model learns from bare text: the next token, or the tokens that are masked.

Which document is seen when, and which of its tokens are masked, follows from the seed and the number of the example
alone, so a training that goes on sees what it would have seen.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from mergesearch.errors import MergesearchError, Problem, SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PretrainedConfig

    from mergesearch.training.documents import TokenStore

Objective = Literal["next_token", "masked"]
IGNORED = -100
"""The label of tokens that are not predicted."""
_MASKS, _RANDOM_WORDS = 0.8, 0.9  # of the selected tokens 80% become the mask token, 10% a random one, 10% stay


def choose_objective(config: PretrainedConfig, tokenizer: Any, wanted: str) -> Objective:
    """The objective that fits the model: `masked` for encoders, `next_token` for decoders.

    Args:
        config: of the model.
        tokenizer: of the model.
        wanted: `auto`, `masked` or `next_token`.

    Raises:
        SourceError: the model cannot learn that way; the message says why.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    problems: dict[Objective, str] = {}
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        problems["masked"] = f"model type {config.model_type!r} has no masked-language-model head"
    elif tokenizer.mask_token is None:
        problems["masked"] = "the tokenizer has no mask token"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        problems["next_token"] = f"model type {config.model_type!r} has no next-token head"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING or getattr(config, "use_bidirectional_attention", False):
        problems["next_token"] = f"this {config.model_type!r} attends to both sides, so it would see the next token"
    order: tuple[Objective, ...] = ("masked", "next_token")
    for objective in order:
        if wanted in ("auto", objective) and objective not in problems:
            return objective
    told = {k: v for k, v in problems.items() if wanted in ("auto", k)}
    raise SourceError(
        [f"{reason}; objective {name!r} cannot be used" for name, reason in told.items()]
        or [f"objective {wanted!r} is none of auto, masked, next_token"]
    )


def load_with_head(folder: Path, objective: Objective, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """A model with a head for the objective, and the names of what had to be made anew of that head.

    A masked-language model's head is tied to the word embeddings, and drawn where the files do not hold it. A head
    for the next token is not: what it would teach is noise until it has seen more text than adapters are trained on.

    Raises:
        SourceError: the files hold no head for the next token, and none is tied.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if objective == "masked":
        config.tie_word_embeddings = True
    config.use_cache = False
    classes = {"masked": AutoModelForMaskedLM, "next_token": AutoModelForCausalLM}
    model, info = classes[objective].from_pretrained(
        folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    fresh = {name for name in info["missing_keys"] if not name.startswith(f"{model.base_model_prefix}.")}
    if fresh and objective == "next_token":
        message = f"its files hold no next-token head ({', '.join(sorted(fresh))}); give the pretrained model itself"
        raise SourceError([Problem(message, str(folder))])
    return model, fresh


class Examples(Dataset[tuple[int, "NDArray[np.int64]"]]):
    """The examples of a training, by their number; every document comes once before any comes again.

    Args:
        store: the documents.
        seed: of their order, which is another in every pass.
        epochs: passes over the documents, may be a fraction.
        most: examples at most, if any.
        tokens: token ids at most, if any; at least one example is left.
    """

    def __init__(
        self, store: TokenStore, *, seed: int, epochs: float, most: int | None = None, tokens: int | None = None
    ) -> None:
        self._store = store
        self._seed = seed
        wanted = max(1, round(epochs * len(store))) if most is None else most
        if tokens is not None:
            wanted = self._within(tokens, wanted)
        self._length = wanted

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """The example's number and its token ids."""
        if not 0 <= number < self._length:
            raise IndexError(number)
        whole_passes, within = divmod(number, len(self._store))
        return number, self._store.document(int(_order(self._seed, whole_passes, len(self._store))[within]))

    @property
    def tokens(self) -> int:
        """Token ids of all examples."""
        lengths = self._store.lengths
        whole_passes, rest = divmod(self._length, len(self._store))
        last = _order(self._seed, whole_passes, len(self._store))[:rest]
        return whole_passes * int(lengths.sum()) + int(lengths[last].sum())

    def _within(self, tokens: int, wanted: int) -> int:
        lengths, count = self._store.lengths, 0
        for number in range(math.ceil(wanted / len(lengths))):
            running = np.cumsum(lengths[_order(self._seed, number, len(lengths))])
            fitting = int(np.searchsorted(running, tokens, side="right"))
            count += fitting
            if fitting < len(lengths):
                break
            tokens -= int(running[-1])
        return max(1, min(count, wanted))


@lru_cache(maxsize=2)
def _order(seed: int, number: int, n_documents: int) -> NDArray[np.int64]:
    """The order of the documents in one pass, int64 [documents]."""
    return np.random.default_rng([seed, number]).permutation(n_documents)


class Collate:
    """Examples as a padded batch with labels: `input_ids`, `attention_mask` and `labels`, int64 [B, L].

    Args:
        objective: what is predicted.
        tokenizer: of the model.
        vocab_size: rows of its token embedding.
        seed: of the masks.
        mask_probability: share of the tokens that are predicted, for `masked`; at least one of every text.
    """

    def __init__(
        self, objective: Objective, tokenizer: Any, *, vocab_size: int, seed: int, mask_probability: float
    ) -> None:
        self._objective = objective
        self._seed = seed
        self._share = mask_probability
        self._mask_id = tokenizer.mask_token_id
        self._special = np.array(sorted(set(tokenizer.all_special_ids)), dtype=np.int64)
        ordinary = np.setdiff1d(np.arange(min(vocab_size, len(tokenizer))), self._special)
        self._ordinary = ordinary
        self._pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)

    def __call__(self, examples: Sequence[tuple[int, NDArray[np.int64]]]) -> dict[str, torch.Tensor]:
        """The batch."""
        made = [self._masked(number, ids) if self._objective == "masked" else (ids, ids) for number, ids in examples]
        width = max(len(ids) for ids, _ in made)
        shape = len(made), width
        ids, labels = np.full(shape, self._pad_id), np.full(shape, IGNORED)
        mask = np.zeros(shape, dtype=np.int64)
        for row, (tokens, wanted) in enumerate(made):
            ids[row, : len(tokens)] = tokens
            labels[row, : len(tokens)] = wanted
            mask[row, : len(tokens)] = 1
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }

    def _masked(self, number: int, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """BERT's masking (Devlin et al. 2019, https://arxiv.org/abs/1810.04805): changed ids, and labels."""
        draw = np.random.default_rng([self._seed, 1, number])
        chance = np.where(np.isin(ids, self._special), np.inf, draw.random(len(ids)))
        chosen = (chance < self._share) | (chance == chance.min())
        how = draw.random(len(ids))
        words = draw.choice(self._ordinary, len(ids))
        changed = np.where(chosen & (how < _MASKS), self._mask_id, ids)
        changed = np.where(chosen & (how >= _MASKS) & (how < _RANDOM_WORDS), words, changed)
        return changed, np.where(chosen, ids, IGNORED)


def check_learns(objective: Objective, tokenizer: Any, max_length: int) -> int:
    """The fewest tokens from which this can be learned.

    Raises:
        MergesearchError: texts cut at `max_length` have fewer.
    """
    shortest = max(2, tokenizer.num_special_tokens_to_add() + 1) if objective == "masked" else 2
    if max_length < shortest:
        raise MergesearchError(f"max_length {max_length} leaves nothing to learn; give {shortest} or more")
    return shortest
