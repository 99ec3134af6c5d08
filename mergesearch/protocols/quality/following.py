"""Where a gain on dev went: the highest merge against the best source, on the sample, beyond it, and on test.

Three things lie between the dev sample and test: the sample is searched on a pool of few documents, its queries chose
the merge, and test queries may be of another kind. So the gain is measured on the same queries with the whole corpus,
then on the dev queries that were not drawn, then on test. Only dev is read here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergesearch.protocols.quality.schema import Protocol
from mergesearch.protocols.quality.searching import Planned
from mergesearch.recipe import MergeRecipe
from mergesearch.results.distance import Distances
from mergesearch.workers.evaluator import TrialEvaluator


def follow(
    protocol: Protocol, collection: str, planned: Sequence[Planned], test: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """The gain of each domain model's highest merge, and its standard error, by where it is measured.

    Args:
        protocol: what is asked for.
        collection: one of its collections.
        planned: its studies, all of them run.
        test: test scores per query, of merges by `key_of` and of sources by name, as far as test was read.

    Returns:
        By domain model: `sample on its pool`, `sample on the corpus`, `other dev queries`, `test`; each `gain`,
        `se` and `queries`, or None where there are no such queries or test was not read for that merge.
    """
    file = protocol.work / collection / "followed.json"
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for domain in dict.fromkeys(p.domain for p in planned):
        mine = [p for p in planned if p.domain == domain]
        found = _highest(mine)
        name = f"{key_of(found.merge)} {key_of(found.source)}"
        if kept.get(domain, {}).get("of") != name:
            ids, difference = _on_whole_dev(protocol, collection, mine[0], found)
            drawn = np.isin(ids, found.query_ids)
            kept[domain] = {
                "of": name,
                "sample on its pool": _summary(found.difference),
                "sample on the corpus": _summary(difference[drawn]),
                "other dev queries": _summary(difference[~drawn]),
            }
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps(kept), encoding="utf-8")
            draft.rename(file)
        a, b = test.get(key_of(found.merge)), test.get(found.source_name)
        kept[domain]["test"] = None if a is None or b is None else _summary(a - b)
    return kept


def key_of(recipe: MergeRecipe) -> str:
    """What a recipe is known by, whatever its seed."""
    return replace(recipe, seed=0).fingerprint


@dataclass(frozen=True)
class _Pair:
    """The highest merge and the best source alone; `difference` of their scores on the dev sample, float64 [Q]."""

    merge: MergeRecipe
    source: MergeRecipe
    source_name: str
    difference: NDArray[np.float64]
    query_ids: tuple[str, ...]


def _highest(planned: Sequence[Planned]) -> _Pair:
    """Of all searches with one domain model."""
    scored = []
    for plan in planned:
        distances = Distances(plan.study)
        with plan.open() as store:
            for recipe, result in store.scored().values():
                distance, nearest = distances.nearest(recipe)
                scored.append((result.value, distance == 0, str(nearest), recipe, result.collections[0]))
    _, _, _, merge, high = max((s for s in scored if not s[1]), key=lambda s: s[0])
    _, _, name, source, low = max((s for s in scored if s[1]), key=lambda s: s[0])
    return _Pair(merge, source, name, high.scores - low.scores, high.query_ids)


def _on_whole_dev(
    protocol: Protocol, collection: str, plan: Planned, pair: _Pair
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Query ids of the whole dev split, and the differences on them with the whole corpus, float64 [Q]."""
    (spec,) = plan.study.collection_specs()
    spec = replace(spec, options={"folder": str(protocol.folder(collection))})
    evaluator = TrialEvaluator(replace(plan.study.unmerged_spec(), collections=(spec,)))
    a, b = (evaluator.evaluate(recipe).collections[0] for recipe in (pair.merge, pair.source))
    return a.query_ids, a.scores - b.scores


def _summary(differences: NDArray[np.float64]) -> dict[str, float] | None:
    n = len(differences)
    if n < 2:
        return None
    return {"gain": float(differences.mean()), "se": float(differences.std(ddof=1)) / math.sqrt(n), "queries": n}
