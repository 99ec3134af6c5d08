"""`PairPlan`: pairs of texts put together from texts that were tokenised once, in batches that every trial scores.

A query stands in many pairs and a document in some. Both lie in memory once, as token ids; a pair is put together when
its batch is made. Batches are planned by the true lengths of pairs, truncation included.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mergesearch.evaluation.tokens import BATCH_TOKENS, Plan, plan_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Seam:
    """Token ids around the two texts of a pair.

    Attributes:
        before: ids before the first text.
        between: ids between both.
        after: ids behind the second.
        types: token type of `before`, the first text, `between`, the second text and `after`; None for models that do
            not take token types.
        keeps_end: a text that is cut loses its beginning.
    """

    before: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    types: tuple[int, int, int, int, int] | None = None
    keeps_end: bool = False

    def __len__(self) -> int:
        """Tokens that are no text's."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class Texts:
    """Tokenised texts one after the other.

    Attributes:
        ids: int32 [T]; memory-mapped where it was given a file.
        offsets: int64 [N + 1]; text i is `ids[offsets[i]:offsets[i + 1]]`.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, int64 [N]."""
        return np.diff(self.offsets)

    def part(self, text: int, kept: int, keeps_end: bool) -> NDArray[np.int32]:
        """The first, or the last, so many ids of a text."""
        start, end = self.offsets[text], self.offsets[text + 1]
        return self.ids[end - kept : end] if keeps_end else self.ids[start : start + kept]


@dataclass(frozen=True)
class PairPlan(Plan):
    """Pairs and the batches they are scored in; what the base class calls a text is a pair here.

    Notation: P pairs.

    Attributes:
        firsts: the texts that come first in a pair.
        seconds: those that come second.
        pairs: int64 [P, 2], positions in `firsts` and `seconds`.
        kept: int64 [P, 2], how many tokens of both are left after truncation.
        seam: what stands around them.
        batches: see the base class.
    """

    firsts: Texts
    seconds: Texts
    pairs: NDArray[np.int64]
    kept: NDArray[np.int64]
    seam: Seam
    batches: tuple[NDArray[np.int64], ...]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per pair, int64 [P]."""
        lengths: NDArray[np.int64] = self.kept.sum(axis=1) + len(self.seam)
        return lengths

    @cached_property
    def fingerprint(self) -> str:
        """See the base class."""
        digest = hashlib.sha256(repr(self.seam).encode())
        texts = [part for side in (self.firsts, self.seconds) for part in (side.ids, side.offsets)]
        arrays: list[NDArray[Any]] = [*texts, self.pairs, self.kept, *self.batches]
        for array in arrays:
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def joined(self, texts: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """See the base class."""
        seam = self.seam
        before, between, after = (np.array(ids, dtype=np.int32) for ids in (seam.before, seam.between, seam.after))
        pieces = [np.zeros(0, dtype=np.int32)]
        for (first, second), (left, right) in zip(self.pairs[texts], self.kept[texts], strict=True):
            head = self.firsts.part(first, left, seam.keeps_end)
            tail = self.seconds.part(second, right, seam.keeps_end)
            pieces += [before, head, between, tail, after]
        return np.concatenate(pieces), self.lengths[texts]

    def extras(self, texts: NDArray[np.int64], mask: NDArray[np.bool_] | None) -> dict[str, Any]:
        """See the base class.

        Returns:
            `seconds`, int64 [B], tokens of the second text of each pair, as an array on the host; and
            `token_type_ids`, int64 [B, L], for models that take them.
        """
        made: dict[str, Any] = {"seconds": self.kept[texts, 1]}
        seam, kept = self.seam, self.kept[texts]
        if seam.types is not None and mask is not None:
            fixed = [np.full(len(texts), len(ids)) for ids in (seam.before, seam.between, seam.after)]
            parts = np.stack([fixed[0], kept[:, 0], fixed[1], kept[:, 1], fixed[2]], axis=1)
            types = np.zeros(mask.shape, dtype=np.int64)
            types[mask] = np.repeat(np.tile(seam.types, len(texts)), parts.ravel())
            made["token_type_ids"] = torch.from_numpy(types)
        return made

    def subset(self, texts: NDArray[np.int64], batch_tokens: int = BATCH_TOKENS) -> PairPlan:
        """A plan of its own for some of the pairs, in the order given; the texts' tokens are shared."""
        batches = plan_batches(self.lengths[texts], batch_tokens)
        return replace(self, pairs=self.pairs[texts], kept=self.kept[texts], batches=batches)


def longest_first(lengths: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """How many tokens tokenizers keep of both texts of a pair with `truncation="longest_first"`.

    The longer text is cut; where that is not enough, both have half of the room, the longer one the odd token.

    Args:
        lengths: int64 [P, 2].
        room: tokens for both.

    Returns:
        int64 [P, 2].
    """
    short, long = lengths.min(axis=1), lengths.max(axis=1)
    cut = np.where(short > room, short, np.maximum(short, room - short))
    halved = short + cut > room
    kept_short = np.where(halved, room // 2, short)
    kept_long = np.where(halved, room // 2 + room % 2, cut)
    first_is_longer = (lengths[:, 0] > lengths[:, 1])[:, None]
    kept = np.where(first_is_longer, np.stack([kept_long, kept_short], 1), np.stack([kept_short, kept_long], 1))
    return np.where((short + long <= room)[:, None], lengths, kept)


def one_gives_way(lengths: NDArray[np.int64], room: int, side: int) -> NDArray[np.int64]:
    """How many tokens are kept where one side (0 or 1) is cut, and the other one only once nothing is left of it."""
    other = np.minimum(lengths[:, 1 - side], room)
    own = np.minimum(lengths[:, side], room - other)
    return np.stack([own, other] if side == 0 else [other, own], axis=1)
