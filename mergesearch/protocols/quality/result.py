"""Everything that is known of one collection when its test split was read, as plain JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergesearch.evaluation.result import CollectionScores
from mergesearch.protocols.quality.calibrating import calibrate, predicted_gain
from mergesearch.protocols.quality.explaining import correlation, token_counts, vocabulary_shift, weight_distance
from mergesearch.protocols.quality.following import follow, key_of
from mergesearch.protocols.quality.judging import ALONE, best_source, judge, make_rows
from mergesearch.protocols.quality.schema import RETRIEVER, Protocol
from mergesearch.protocols.quality.searching import Planned
from mergesearch.protocols.quality.testing import Candidate
from mergesearch.results.choose import Candidate as Chosen
from mergesearch.results.choose import choose, scored_trials
from mergesearch.results.distance import Distances, factors
from mergesearch.versions import versions

FILE = "result.json"


def collect(
    protocol: Protocol,
    collection: str,
    planned: Sequence[Planned],
    found: Sequence[Candidate],
    scores: Sequence[CollectionScores],
) -> dict[str, Any]:
    """Rows, calibration and explanation of one collection, left as `result.json` in its work folder.

    Args:
        protocol: what was asked for.
        collection: its name.
        planned: its studies, all of them run.
        found: what test was read for.
        scores: test scores of these.
    """
    content = protocol.content
    rows = make_rows(found, scores)
    known = {domain: _merges(planned, domain) for domain in dict.fromkeys(p.domain for p in planned)}
    result = {
        "collection": collection,
        "protocol_sha256": protocol.sha256,
        "metric": content.metric,
        "versions": versions(),
        "dev_queries": len(planned[0].study.collections[0].query_ids),
        "dev_documents": len(planned[0].study.collections[0].doc_ids),
        "test_queries": len(scores[0].query_ids),
        "best_source": best_source(rows).name,
        "rows": judge(rows, content.significance),
        "encoded": {domain: len(merges) for domain, (merges, _) in known.items()},
        "landscape": {
            domain: [{**point, "dev": m.value} for m, point in zip(merges, points, strict=True)]
            for domain, (merges, points) in known.items()
        },
        "calibration": {
            domain: calibrate(merges, seed=content.seed, **content.calibration.model_dump())
            for domain, (merges, _) in known.items()
        },
        "carried_over": _carried_over(planned, found, scores, content.calibration.level),
        "followed": follow(protocol, collection, planned, _by_model(found, scores)),
        "explanation": _explanation(protocol, collection, planned, known),
    }
    file = protocol.work / collection / FILE
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.rename(file)
    return result


def read_result(protocol: Protocol, collection: str) -> dict[str, Any] | None:
    """What `collect` left; None where the collection is not done."""
    file = protocol.work / collection / FILE
    found: dict[str, Any] | None = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return found


def _merges(planned: Sequence[Planned], domain: str) -> tuple[list[Chosen], list[dict[str, float]]]:
    """Every merge with a domain model that any search has scored, once, and the retriever's share in each group."""
    found: dict[str, tuple[Chosen, dict[str, float]]] = {}
    for plan in (p for p in planned if p.domain == domain):
        distances = Distances(plan.study)
        with plan.open() as store:
            for recipe, result in store.scored().values():
                shares = {g: f[RETRIEVER] for g, f in factors(plan.study.method, recipe).items()}
                key = json.dumps(shares, sort_keys=True)
                if key not in found:
                    distance, nearest = distances.nearest(recipe)
                    merge = Chosen(len(found), key, result.value, result.collections, distance, nearest, key)
                    found[key] = merge, shares
    return [m for m, _ in found.values()], [s for _, s in found.values()]


def _by_model(found: Sequence[Candidate], scores: Sequence[CollectionScores]) -> dict[str, NDArray[np.float64]]:
    """Test scores of merges by `key_of` their recipe, and of sources by name."""
    named = {key_of(c.recipe): s.scores for c, s in zip(found, scores, strict=True)}
    alone = {c.row.removesuffix(ALONE): s.scores for c, s in zip(found, scores, strict=True) if c.row.endswith(ALONE)}
    return {**named, **alone}


def _carried_over(
    planned: Sequence[Planned], found: Sequence[Candidate], scores: Sequence[CollectionScores], level: float
) -> list[dict[str, Any]]:
    """Per search: the gain over the best source of dev that its trials promise on test, and what came of it.

    Only for searches whose choice is the highest on dev: another highest was not read on test.
    """
    test = {c.subject if c.seed is None else (c.row, c.seed): s for c, s in zip(found, scores, strict=True)}
    told = []
    for plan in planned:
        with plan.open() as store:
            choice = choose(plan.study, store)
            if choice.verdict != "merge" or choice.source_number is None:
                continue
            source = Distances(plan.study).nearest(store.recipe(choice.source_number))[1]
            scored = store.scored()
            numbers = [t.number for t in scored_trials(store)]
        places = (numbers.index(choice.best_number), numbers.index(choice.source_number))
        merges = [scored[n][1].collections for n in numbers]
        mine, other = test[plan.row, plan.seed], test[f"{source} alone"]
        expected, _, interval = predicted_gain(merges, *places, choice, len(mine.scores), level)
        measured = mine.mean - other.mean
        told.append(
            {
                "row": plan.row,
                "seed": plan.seed,
                "source": source,
                "dev_gain": choice.gain,
                "expected": expected,
                "interval": list(interval),
                "measured": measured,
                "covered": interval[0] <= measured <= interval[1],
            }
        )
    return told


def _explanation(
    protocol: Protocol,
    collection: str,
    planned: Sequence[Planned],
    known: Mapping[str, tuple[list[Chosen], list[dict[str, float]]]],
) -> dict[str, Any]:
    """See `explaining`."""
    from transformers import AutoTokenizer

    first = planned[0].study
    tokenizer = AutoTokenizer.from_pretrained(first.folders[RETRIEVER], local_files_only=True)
    counted = {name: token_counts(protocol.folder(name), tokenizer) for name in protocol.content.collections}
    counts, words = counted[collection]
    models = {}
    for domain, (merges, _) in known.items():
        study = next(p.study for p in planned if p.domain == domain)
        alone = {m.nearest: m for m in merges if m.distance == 0}
        highest = max(merges, key=lambda m: m.value)
        models[domain] = {
            "weight_distance": weight_distance(study, RETRIEVER, domain),
            "dev_scores": {str(name): m.value for name, m in alone.items()},
            "dev_correlation": correlation(*(alone[s].scores[0].scores.tolist() for s in (RETRIEVER, domain))),
            "dev_highest": highest.value,
        }
    return {
        "vocabulary_shift_bits": vocabulary_shift({n: c for n, (c, _) in counted.items()}, collection)
        if len(counted) > 1
        else None,
        "tokens_per_word": counts.total() / max(1, words),
        "models": models,
    }
