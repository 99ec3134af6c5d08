"""Rows of one collection's table: test scores, paired differences, and what of them is more than luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.result import CollectionScores
from mergesearch.evaluation.significance import Comparison, compare, holm
from mergesearch.protocols.quality.schema import RETRIEVER
from mergesearch.protocols.quality.testing import Candidate

ALONE = " alone"
SAME = "same"
"""Verdict on a row that has the other's scores on every query, as a chosen source has: nothing was tested."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: such as `TPE`.
        by_seed: test scores, one line for every seed, float64 [S, Q].
        candidates: what was scored, one for every seed.
    """

    name: str
    by_seed: NDArray[np.float64]
    candidates: tuple[Candidate, ...]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over seeds, float64 [Q]; of equal scores these to the bit, which a sum divided by 3 is not always."""
        first = self.by_seed[0]
        mean: NDArray[np.float64] = first + (self.by_seed - first).mean(axis=0)
        return mean


def make_rows(found: Sequence[Candidate], scores: Sequence[CollectionScores]) -> list[Row]:
    """Candidates by row, seeds together."""
    by_row: dict[str, list[int]] = {}
    for i, candidate in enumerate(found):
        by_row.setdefault(candidate.row, []).append(i)
    return [
        Row(name, np.stack([scores[i].scores for i in places]), tuple(found[i] for i in places))
        for name, places in by_row.items()
    ]


def best_source(rows: Sequence[Row]) -> Row:
    """The source that scores highest on test: chosen in hindsight, so it is the hardest one to beat."""
    return max((r for r in rows if r.name.endswith(ALONE)), key=lambda r: r.mean.mean())


def judge(rows: Sequence[Row], significance: float) -> list[dict[str, Any]]:
    """The rows with their differences to the retriever and to the best source, in plain JSON types.

    P-values are of two-sided paired t-tests over queries, Holm-corrected over all comparisons of these rows.
    """
    references = {RETRIEVER: next(r for r in rows if r.name == f"{RETRIEVER}{ALONE}"), "best source": best_source(rows)}
    compared: dict[tuple[str, str], Comparison] = {}
    tested: dict[frozenset[str], tuple[str, str]] = {}
    for row in rows:
        for name, reference in references.items():
            pair = frozenset({row.name, reference.name})  # the retriever against the best source, seen from both
            if np.array_equal(row.mean, reference.mean):
                continue
            compared[row.name, name] = compare(row.mean, reference.mean)
            tested.setdefault(pair, (row.name, name))
    p_holm = dict(zip(tested, holm([compared[key].p_ttest for key in tested.values()]), strict=True))

    def against(row: Row, name: str) -> dict[str, Any]:
        found = compared.get((row.name, name))
        if found is None:
            return {"difference": 0.0, "verdict": SAME}
        p = p_holm[frozenset({row.name, references[name].name})]
        sign = "better" if found.mean_difference > 0 else "worse"
        return {
            "difference": found.mean_difference,
            "interval": list(found.interval),
            "p_ttest": found.p_ttest,
            "p_permutation": found.p_permutation,
            "p_holm": p,
            "verdict": sign if p < significance else "no difference",
        }

    return [
        {
            "row": row.name,
            "test": float(row.mean.mean()),
            "by_seed": row.by_seed.mean(axis=1).tolist(),
            "sd": float(row.by_seed.mean(axis=1).std(ddof=1)) if len(row.by_seed) > 1 else None,
            "chosen": [
                {"seed": c.seed, "subject": c.subject, "dev": c.dev, "choice": c.choice} for c in row.candidates
            ],
            "against": {name: against(row, name) for name in references},
        }
        for row in rows
    ]
