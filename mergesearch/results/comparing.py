"""Studies side by side: what each chose, what it cost, and paired tests where their queries are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergesearch.evaluation.labels import PSEUDO
from mergesearch.evaluation.result import CollectionScores
from mergesearch.evaluation.significance import Comparison, compare, holm
from mergesearch.results.choose import Choice
from mergesearch.results.evaluate import Table
from mergesearch.results.report.costs import Costs, costs, strategies
from mergesearch.results.report.held_out import HeldOut, held_out
from mergesearch.results.tested import shown_p
from mergesearch.results.view import StudyView


@dataclass(frozen=True)
class Column:
    """One study in a comparison.

    Attributes:
        name: of the study, told apart from others of the same name.
        method: how it merges.
        strategies: what proposed its trials, in the order of their first ones.
        sources: their names.
        metric: what trials are scored by.
        choice: what it chose; None while nothing is scored.
        costs: of all its trials.
        tests: readings of test splits for what it chose.
    """

    name: str
    method: str
    strategies: tuple[str, ...]
    sources: tuple[str, ...]
    metric: str
    choice: Choice | None
    costs: Costs
    tests: tuple[HeldOut, ...]


@dataclass(frozen=True)
class Pair:
    """What one study's choice scores more than another's, on the same queries.

    Attributes:
        first, second: names of the studies; `comparison` is of the first less the second.
        split: of test queries.
        collection: whose.
        comparison: None where both score the same on every query.
        p_holm: corrected over all pairs of the comparison; 1 where nothing was tested.
        pseudo: the queries are pseudo-queries.
    """

    first: str
    second: str
    split: str
    collection: str
    comparison: Comparison | None
    p_holm: float
    pseudo: bool = False

    @property
    def where(self) -> str:
        """The collection, and what its queries are where no user asked them."""
        return f"{self.collection} ({PSEUDO})" if self.pseudo else self.collection


@dataclass(frozen=True)
class Studies:
    """Studies side by side.

    Attributes:
        columns: a study each, in the order given.
        pairs: paired tests of every two that were read on the same test queries.
        notes: which cannot be compared, and why, and what else has to be known.
    """

    columns: tuple[Column, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    def tables(self) -> list[Table]:
        """The studies, what the test queries say, and the paired tests."""
        headers = [
            "study",
            "method",
            "strategy",
            "sources",
            "trials",
            "tokens",
            "seconds",
            "dev score",
            "luck",
            "verdict",
        ]
        rows: list[tuple[Any, ...]] = [
            (
                c.name,
                c.method,
                ", ".join(c.strategies),
                ", ".join(c.sources),
                c.costs.trials,
                f"{c.costs.tokens:,}",
                f"{c.costs.elapsed.total_seconds():,.0f}",
                "" if c.choice is None else f"{c.choice.value:.4f}{c.choice.on_queries}",
                "" if c.choice is None else f"{c.choice.optimism:.4f}",
                "nothing scored" if c.choice is None else c.choice.verdict,
            )
            for c in self.columns
        ]
        tables: list[Table] = [("studies (dev scores are selection scores)", headers, rows)]
        read: list[tuple[Any, ...]] = [
            (c.name, t.split, t.where, t.scores.metric, len(t.scores.query_ids), f"{t.scores.mean:.4f}")
            for c in self.columns
            for t in c.tests
        ]
        if read:
            tables.append(("test scores", ["study", "split", "collection", "metric", "queries", "score"], read))
        if self.pairs:
            headers = [
                "paired by query",
                "split",
                "collection",
                "difference",
                "95% interval",
                "p (t)",
                "p (perm.)",
                "p (t, Holm)",
            ]
            tables.append(("differences between the chosen merges", headers, [_row(p) for p in self.pairs]))
        return tables

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "studies": [
                {
                    "study": c.name,
                    "method": c.method,
                    "strategies": list(c.strategies),
                    "sources": list(c.sources),
                    "metric": c.metric,
                    "trials": c.costs.trials,
                    "tokens": c.costs.tokens,
                    "seconds": c.costs.elapsed.total_seconds(),
                    "gpu_seconds": c.costs.gpu_seconds,
                    "choice": None if c.choice is None else c.choice.to_dict(),
                    "test": [
                        {
                            "split": t.split,
                            "collection": t.scores.collection,
                            "metric": t.scores.metric,
                            "queries": len(t.scores.query_ids),
                            "pseudo_queries": t.pseudo,
                            "score": t.scores.mean,
                            "at": t.at.isoformat(),
                        }
                        for t in c.tests
                    ],
                }
                for c in self.columns
            ],
            "pairs": [
                {
                    "first": p.first,
                    "second": p.second,
                    "split": p.split,
                    "collection": p.collection,
                    "pseudo_queries": p.pseudo,
                    "difference": 0.0 if p.comparison is None else p.comparison.mean_difference,
                    "interval": None if p.comparison is None else list(p.comparison.interval),
                    "p_ttest": None if p.comparison is None else p.comparison.p_ttest,
                    "p_permutation": None if p.comparison is None else p.comparison.p_permutation,
                    "p_holm": p.p_holm,
                }
                for p in self.pairs
            ],
            "notes": list(self.notes),
        }


def compare_studies(views: Sequence[StudyView]) -> Studies:
    """Put studies side by side.

    Only readings of test splits are tested: dev scores chose the merges, each among its own study's trials, so a
    difference between them says little. Two studies are tested on a collection where both were read on the same
    queries of the same collection with the same metric; p-values are Holm-corrected over all pairs. That collections
    are the same is known from their content on dev, or from where the study files say that they lie.

    Args:
        views: two or more.
    """
    names = _told_apart([v.study.name for v in views])
    columns = tuple(_column(name, view) for name, view in zip(names, views, strict=True))
    pairs: list[tuple[Column, Column, str, CollectionScores, CollectionScores]] = []
    notes: list[str] = []
    for i, first in enumerate(columns):
        for j in range(i + 1, len(columns)):
            found, why = _shared(first, columns[j], views[i], views[j])
            pairs += found
            notes += why
    compared = [None if np.array_equal(a.scores, b.scores) else compare(a.scores, b.scores) for *_, a, b in pairs]
    corrected = iter(holm([c.p_ttest for c in compared if c is not None]))
    pseudo = {(c.name, t.split, t.scores.collection) for c in columns for t in c.tests if t.pseudo}
    tested_pairs = tuple(
        Pair(
            first.name,
            second.name,
            split,
            a.collection,
            c,
            1.0 if c is None else next(corrected),
            (first.name, split, a.collection) in pseudo,
        )
        for (first, second, split, a, _), c in zip(pairs, compared, strict=True)
    )
    return Studies(columns, tested_pairs, tuple(notes))


def _column(name: str, view: StudyView) -> Column:
    content = view.study.parsed.content
    return Column(
        name=name,
        method=content.merge.method,
        strategies=tuple(s.name for s in strategies(view)),
        sources=tuple(content.sources),
        metric=view.metric,
        choice=view.choice,
        costs=costs(view),
        tests=held_out(view),
    )


def _shared(
    first: Column, second: Column, one: StudyView, other: StudyView
) -> tuple[list[tuple[Column, Column, str, CollectionScores, CollectionScores]], list[str]]:
    """Test readings of both on the same queries; and, where there are none, why."""
    who = f"{first.name} and {second.name}"
    notes = [f"{who}: {why}" for why in _dev_differences(one, other)]
    ours = {(t.split, t.scores.collection): t.scores for t in first.tests}
    theirs = {(t.split, t.scores.collection): t.scores for t in second.tests}
    found = []
    for key in [k for k in ours if k in theirs]:
        a, b = ours[key], theirs[key]
        what = f"{key[1]}, {key[0]} split"
        if not _same_place(one, other, key[1]):
            notes.append(f"{who} are not comparable on {what}: the study files name different collections so")
        elif a.metric != b.metric:
            notes.append(f"{who} are not comparable on {what}: scored by {a.metric} and by {b.metric}")
        elif a.query_ids != b.query_ids:
            common = len(set(a.query_ids) & set(b.query_ids))
            numbers = f"{len(a.query_ids)} and {len(b.query_ids)}, {common} in common"
            notes.append(f"{who} are not comparable on {what}: the queries are not the same ({numbers})")
        elif len(a.query_ids) > 1:
            found.append((first, second, key[0], a, b))
    unread = [c.name for c in (first, second) if not c.tests]
    if unread:
        read = " and ".join(unread)
        notes.append(f"{who} were not tested: no test split of {read} was read (`mergesearch evaluate` reads it)")
    elif not found and not any(k in theirs for k in ours):
        notes.append(f"{who} are not comparable: no test split of a common collection was read for both")
    return found, notes


def _same_place(one: StudyView, other: StudyView, collection: str) -> bool:
    """Whether two studies mean the same by a collection: equal on dev, or read from the same place."""
    contents, places = [], []
    for view in (one, other):
        recorded = view.record.score_relevant.get("evaluation", {}).get("collections", {})
        contents.append(recorded.get(collection, {}).get("content"))
        spec = next((c for c in view.study.collection_specs(test=True) if c.name == collection), None)
        options = {} if spec is None else dict(spec.options)
        for key in {"folder", "documents"} & options.keys():
            options[key] = str((view.study.parsed.folder / str(options[key])).resolve())
        places.append(None if spec is None else (spec.format, spec.split, options))
    return contents[0] == contents[1] or places[0] == places[1]


def _dev_differences(one: StudyView, other: StudyView) -> list[str]:
    """Why dev scores of two studies do not compare, even as selection scores."""
    if one.metric != other.metric:
        return [f"dev scores do not compare: {one.metric} and {other.metric}"]
    mine, theirs = (v.record.score_relevant.get("evaluation", {}).get("collections", {}) for v in (one, other))
    if mine.keys() != theirs.keys():
        return [f"dev scores do not compare: searched on {', '.join(mine)} and on {', '.join(theirs)}"]
    different = [name for name in mine if mine[name]["content"] != theirs[name]["content"]]
    if different:
        return [f"dev scores do not compare: texts, queries or judgements of {', '.join(different)} differ"]
    weights = [[collections[name]["weight"] for name in mine] for collections in (mine, theirs)]
    if weights[0] != weights[1]:
        return ["dev scores do not compare: the collections have other weights"]
    return []


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names, numbered where one comes again."""
    return [
        name if names.count(name) == 1 else f"{name} ({list(names[: i + 1]).count(name)})"
        for i, name in enumerate(names)
    ]


def _row(pair: Pair) -> tuple[Any, ...]:
    who = f"{pair.first} − {pair.second}"
    c = pair.comparison
    if c is None:
        return who, pair.split, pair.where, "+0.0000", "the same on every query", "", "", ""
    interval = "[{:+.4f}, {:+.4f}]".format(*c.interval)
    values = map(shown_p, (c.p_ttest, c.p_permutation, pair.p_holm))
    return who, pair.split, pair.where, f"{c.mean_difference:+.4f}", interval, *values
