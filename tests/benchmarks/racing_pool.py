"""Embeddings of many random merges, computed once, so that searches over them can be simulated again and again.

    python -m tests.benchmarks.racing_pool tests/benchmarks/racing.yaml CACHE [--merges 200]

Takes any study file: its space is drawn from, its anchors come first, its dev collections are encoded whole. The
folder then holds the study's text, `recipes.json`, and per merge an `.npz` with fp32 embeddings of all queries and
documents; what is there already is not computed again. `racing.py` beside this file reads it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from mergesearch.resolving import load_study
from mergesearch.search.seeds import derive_seed
from mergesearch.study import Study
from mergesearch.workers.evaluator import TrialEvaluator


def random_points(study: Study, count: int) -> list[dict[str, float]]:
    """Points of the study's space: Dirichlet shares of the sources, the first one's twice as large on average."""
    rng = np.random.default_rng(derive_seed(study.parsed.content.seed, "racing pool"))
    names = [d.name for d in study.space.dimensions]
    points = []
    for _ in range(count):
        draws = rng.gamma([2.0 if i % len(study.merged_sources) == 0 else 1.0 for i in range(len(names))])
        points.append(study.space.snap({n: float(x) for n, x in zip(names, draws / draws.max(), strict=True)}))
    return points


def main() -> None:
    """Encode what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--merges", type=int, default=200)
    args = parser.parse_args()
    study = load_study(args.study)
    recipes = [study.recipe_of(a.coefficients) for a in study.anchors()]
    anchors = len(recipes)
    points = random_points(study, args.merges - anchors)
    recipes += [study.recipe(p) for p in points]
    args.cache.mkdir(parents=True, exist_ok=True)
    listed = {"anchors": anchors, "params": [None] * anchors + points, "fingerprints": [r.fingerprint for r in recipes]}
    (args.cache / "recipes.json").write_text(json.dumps(listed), encoding="utf-8")
    evaluator = TrialEvaluator(study.evaluator_spec())
    print(f"{evaluator.pipeline.n_tokens} tokens per merge", flush=True)
    for number, recipe in enumerate(recipes):
        file = args.cache / f"{recipe.fingerprint}.npz"
        if file.exists():
            continue
        started = time.perf_counter()
        evaluator.merger.apply(recipe)
        arrays = {}
        for prepared in evaluator.pipeline.collections:
            name = prepared.source.collection.name
            arrays[f"{name}/queries"] = evaluator.model.encode(prepared.queries).cpu().numpy()
            arrays[f"{name}/documents"] = evaluator.model.encode(prepared.documents).cpu().numpy()
        with file.with_suffix(".part").open("wb") as out:
            np.savez(out, **arrays)
        file.with_suffix(".part").rename(file)
        print(f"{number + 1}/{len(recipes)}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
