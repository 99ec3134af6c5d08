"""`mergesearch synthesize`: training data that a language model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import examples
from mergesearch.cli.training import texts_option


@click.command(
    "synthesize",
    short_help="Have a language model write hard negatives or queries.",
    epilog=examples(
        "mergesearch synthesize negatives --from ../data/nfcorpus --endpoint http://localhost:8000/v1 "
        "--llm llama-70b --out negatives.jsonl          # says what it would ask for",
        "mergesearch synthesize queries --from corpus.jsonl --most 500 --endpoint http://localhost:8000/v1 "
        "--llm llama-70b --out queries.jsonl --yes",
    ),
)
@click.argument("kind", type=click.Choice(["negatives", "queries"]))
@texts_option("--from", "origin", help="Pairs as for train-expert (negatives), or documents as for adapt (queries).")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .jsonl file for train-expert --pairs.")
@click.option("--endpoint", "url", required=True, metavar="URL", help="Root of an OpenAI-compatible API, as …/v1.")
@click.option("--llm", "model", required=True, help="The model, as the endpoint calls it.")
@click.option(
    "--key-variable", default="OPENAI_API_KEY", show_default=True, help="Environment variable with the API key."
)
@click.option("--split", default="train", show_default=True, help="Of BEIR folders.")
@click.option("--most", type=click.IntRange(1), help="Records at most, drawn at random.")
@click.option("--temperature", type=click.FloatRange(0), default=0.7, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Of an answer.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Requests at a time.")
@click.option("--price-in", type=click.FloatRange(0), help="Per million tokens of prompts.")
@click.option("--price-out", type=click.FloatRange(0), help="Per million tokens of answers.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--yes", is_flag=True, help="Ask; without it only the cost is told.")
def command(
    kind: str,
    origin: tuple[Path, ...],
    out: Path,
    split: str,
    most: int | None,
    seed: int,
    price_in: float | None,
    price_out: float | None,
    yes: bool,
    **endpoint: Any,
) -> None:
    """Have a language model write hard negatives for pairs, or queries for documents.

    Answers are kept as they come: the same command goes on, and asks for nothing twice.
    """
    from mergesearch.cli.progress import phase_bar
    from mergesearch.training.endpoint import Endpoint, cost
    from mergesearch.training.synthesis import plan_negatives, plan_queries, synthesize

    asked = Endpoint(**endpoint)
    if kind == "negatives":
        plan = plan_negatives(origin, split=split, most=most, seed=seed)
    else:
        plan = plan_queries(origin, most=most, seed=seed)
    needed = cost(asked, plan.prompts)
    click.echo(needed.describe(price_in, price_out))
    if needed.missing and not yes:
        click.echo("nothing was asked; add --yes to go on")
        return
    with phase_bar("asking") as progress:
        written, empty = synthesize(plan, asked, out, progress)
    click.echo(f"{out}: {written:,} records" + (f", {empty:,} left out for empty answers" if empty else ""))
