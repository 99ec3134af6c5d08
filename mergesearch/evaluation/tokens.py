"""`TokenPlan`: texts tokenised once, and the fixed batches that every trial encodes.

A batch holds texts of nearly equal length, so that hardly a token of padding is paid for, and no more padded
tokens than its budget. The plan depends on the token counts and the budget only: every trial of a study sees
the same batches, so their composition cannot move a score.
"""

from __future__ import annotations

import hashlib
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BATCH_TOKENS = 2048
"""Padded tokens per batch on a CPU, where a larger batch leaves the caches and is slower."""

LEAST_USEFUL = 0.95
"""Share of a batch's padded tokens that must be real ones."""


class TokenizedTexts(NamedTuple):
    """Some texts as token ids, one after the other without padding.

    Attributes:
        ids: int32, all tokens of all texts.
        lengths: int64, tokens per text.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]


class Plan(ABC):
    """Texts, or pairs of them, as token ids, and the batches that a model is fed with.

    Attributes:
        batches: positions of the texts in each batch; every text is in exactly one. Longest texts first, so
            that a batch too large for the device is found at the start.
    """

    batches: tuple[NDArray[np.int64], ...]

    @property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, int64 [N]."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of tokens and batches: equal plans encode the same thing in the same batches."""

    @abstractmethod
    def joined(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Token ids of the named texts one after the other, int32 [T], and tokens per text, int64 [B]."""

    @abstractmethod
    def extras(self, texts: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> dict[str, Any]:
        """What a model is told of the named texts beside their tokens.

        Args:
            texts: positions.
            mask: where the tokens are, bool [B, L]; None when the texts lie one after the other.
        """

    @property
    def n_texts(self) -> int:
        """How many texts there are."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Useful tokens: what a trial pays for, padding not counted."""
        return int(self.lengths.sum())

    @property
    def n_padded_tokens(self) -> int:
        """Tokens that go through the model, padding counted."""
        lengths = self.lengths
        return sum(len(batch) * int(lengths[batch].max()) for batch in self.batches)

    @property
    def useful(self) -> float:
        """Share of the padded tokens that are real ones; 1.0 for an empty plan."""
        return self.n_tokens / self.n_padded_tokens if self.batches else 1.0

    def padded(
        self, texts: NDArray[np.int64], *, pad_id: int, left: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and attention mask of the named texts, int64 [B, L], padded to the longest of them."""
        joined, lengths = self.joined(texts)
        columns = np.arange(lengths.max())[None, :]
        if left:
            columns = columns[:, ::-1]
        mask = columns < lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = joined
        return ids, mask.astype(np.int64)

    def chunks(self, most_texts: int) -> Iterator[range]:
        """Consecutive batch numbers that together hold at most `most_texts` texts, and at least one batch."""
        start = held = 0
        for number, batch in enumerate(self.batches):
            if held and held + len(batch) > most_texts:
                yield range(start, number)
                start, held = number, 0
            held += len(batch)
        if held:
            yield range(start, len(self.batches))


@dataclass(frozen=True)
class TokenPlan(Plan):
    """Tokenised texts and the batches they are encoded in.

    Notation: N texts, T tokens in all.

    Attributes:
        ids: int32 [T]; memory-mapped where the plan was given a file.
        offsets: int64 [N + 1]; text i is `ids[offsets[i]:offsets[i + 1]]`.
        batches: see the base class.
        prompt_length: tokens of the prompt that pooling leaves out, for models that leave it out.
        modality: how the model wants to be called: `text`, or `message` for chat-template models.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    batches: tuple[NDArray[np.int64], ...]
    prompt_length: int | None = None
    modality: str = "text"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """See the base class."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """See the base class."""
        digest = hashlib.sha256(f"{self.prompt_length} {self.modality}".encode())
        arrays: list[NDArray[Any]] = [self.ids, self.offsets, *self.batches]
        for array in arrays:
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def joined(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """See the base class."""
        starts, ends = self.offsets[texts], self.offsets[texts + 1]
        pieces = [self.ids[a:b] for a, b in zip(starts, ends, strict=True)]
        return np.concatenate([np.zeros(0, dtype=np.int32), *pieces]), ends - starts

    def extras(self, texts: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> dict[str, Any]:  # noqa: ARG002
        """See the base class: what sentence-transformers' modules want to know."""
        prompt = {} if self.prompt_length is None else {"prompt_length": self.prompt_length}
        return {"modality": self.modality, **prompt}

    def subset(self, texts: NDArray[np.int64], batch_tokens: int = BATCH_TOKENS) -> TokenPlan:
        """A plan of its own for some of the texts, in the order given."""
        ids, lengths = self.joined(texts)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return TokenPlan(ids, offsets, plan_batches(lengths, batch_tokens), self.prompt_length, self.modality)


def make_plan(
    tokenized: Iterable[TokenizedTexts],
    *,
    batch_tokens: int = BATCH_TOKENS,
    prompt_length: int | None = None,
    modality: str = "text",
    store: Path | None = None,
) -> TokenPlan:
    """Collect tokenised texts, in order, and plan their batches.

    Args:
        tokenized: pieces of any size; only one is held at a time when `store` is given.
        batch_tokens: most padded tokens per batch; a longer text is a batch of its own.
        prompt_length: see `TokenPlan`.
        modality: see `TokenPlan`.
        store: folder for the token ids of corpora that outgrow memory. The file in it has no name, so nothing
            is left behind and no two processes share one; it takes 4 bytes a token while the plan lives.
    """
    ids, offsets = gather(tokenized, store)
    return TokenPlan(ids, offsets, plan_batches(np.diff(offsets), batch_tokens), prompt_length, modality)


def gather(
    tokenized: Iterable[TokenizedTexts], store: Path | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token ids of all pieces, int32 [T], and where each text begins and ends, int64 [N + 1]; see `make_plan`."""
    lengths: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)]
    ids: NDArray[np.int32]
    if store is None:
        pieces: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
        for piece in tokenized:
            pieces.append(piece.ids)
            lengths.append(piece.lengths)
        ids = np.concatenate(pieces)
    else:
        with tempfile.TemporaryFile(dir=store) as file:
            for piece in tokenized:
                file.write(piece.ids.astype(np.int32, copy=False).tobytes())
                lengths.append(piece.lengths)
            file.flush()
            # An empty file cannot be mapped. A mapping outlives the closed file.
            ids = np.memmap(file, dtype=np.int32, mode="r") if file.tell() else np.zeros(0, dtype=np.int32)
    return ids, np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)


def plan_batches(lengths: NDArray[np.int64], batch_tokens: int) -> tuple[NDArray[np.int64], ...]:
    """Sort texts by length, longest first, and cut where the budget or `LEAST_USEFUL` would be broken.

    Args:
        lengths: tokens per text, int64 [N], all positive.
        batch_tokens: most padded tokens per batch; a longer text is a batch of its own.

    Returns:
        Positions of texts per batch. Every batch is at least `LEAST_USEFUL` real tokens, so the plan is too.
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    batches = []
    start = 0
    while start < len(order):
        longest = int(descending[start])
        fits = max(1, batch_tokens // longest)
        totals = np.cumsum(descending[start : start + fits])
        # Lengths fall, so their mean over the longest does too: the useful ones come first.
        useful = totals >= LEAST_USEFUL * longest * np.arange(1, len(totals) + 1)
        size = int(np.count_nonzero(useful))
        batches.append(order[start : start + size])
        start += size
    return tuple(batches)
