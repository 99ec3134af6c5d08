"""Queries and documents tokenised once, and their pairs planned: `plan_pairs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mergesearch.errors import EvaluationError
from mergesearch.evaluation.joining import WHOLE, Form, Lengths, OneText, make_joiner, together
from mergesearch.evaluation.pairs import PairPlan, Seam, Texts
from mergesearch.evaluation.tokens import gather, plan_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_SAMPLE = 1000
"""Pairs that are compared with whole ones; every text of a small collection is in one of them."""


def plan_pairs(
    tokenizer: Any,
    form: Form,
    queries: Sequence[str],
    documents: Sequence[str],
    pairs: NDArray[np.int64],
    lengths: Lengths,
    *,
    batch_tokens: int,
    takes_types: bool = False,
    store: Path | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> PairPlan:
    """Tokenise the texts that stand in pairs, each once, and plan the pairs' batches.

    Args:
        tokenizer: of transformers.
        form: what the model was trained on.
        queries: texts.
        documents: texts.
        pairs: positions in `queries` and `documents`, int64 [P, 2].
        lengths: what is cut.
        batch_tokens: most padded tokens per batch; a longer pair is a batch of its own.
        takes_types: whether the model takes token types.
        store: folder for the token ids of documents that outgrow memory; see `make_plan`.
        note: is told where pairs had to be tokenised as a whole.

    Raises:
        EvaluationError: a template does not hold its texts or leaves no room for them, or a pair has no tokens.
    """
    joiner = make_joiner(tokenizer, form, lengths, takes_types)
    places, texts = [], []
    for side, given in enumerate((queries, documents)):
        rows, place = np.unique(pairs[:, side], return_inverse=True)
        texts.append([given[row] for row in rows])
        places.append(place.astype(np.int64))
    order = joiner.order
    ordered = np.stack([places[side] for side in order], axis=1)
    if joiner.agrees([[texts[side][i] for i in places[side][_sample(ordered)]] for side in (0, 1)]):
        uncut: tuple[list[int], list[int]] = ([], [])
        sides = [Texts(*gather(joiner.tokenized(side, texts[side], uncut[k]), store)) for k, side in enumerate(order)]
        lengths_before = [np.array(uncut[k], dtype=np.int64)[ordered[:, k]] for k in (0, 1)]
        kept = joiner.kept(np.stack(lengths_before, axis=1), joiner.room)
        seam = joiner.seam
    else:
        note(WHOLE)
        wholes = [joiner.cut(*(texts[side][place[i]] for side, place in enumerate(places))) for i in range(len(pairs))]
        sides = [Texts(*gather([together(part)], store)) for part in ([w[0] for w in wholes], [w[1] for w in wholes])]
        ordered = np.stack([np.arange(len(pairs))] * 2, axis=1)
        kept = np.stack([side.lengths for side in sides], axis=1)
        seam = Seam(types=joiner.seam.types)
    if isinstance(form, OneText) and form.apart and not kept[:, 1].all():
        raise EvaluationError(f"a {('query', 'document')[order[1]]} has no tokens, so its likelihood says nothing.")
    all_lengths = kept.sum(axis=1) + len(seam)
    if not all_lengths.all():
        raise EvaluationError("a pair has no tokens at all, so it cannot be scored.")
    return PairPlan(sides[0], sides[1], ordered, kept, seam, plan_batches(all_lengths, batch_tokens))


def _sample(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs that together hold as many of the texts as may be."""
    firsts = [np.unique(pairs[:, side], return_index=True)[1] for side in (0, 1)]
    rows = np.unique(np.concatenate(firsts))
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).astype(np.int64)] if len(rows) else rows
