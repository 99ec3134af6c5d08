"""`mergesearch synthesize`: training data and prompts that a language model writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mergesearch.cli.common import examples, open_existing, storage_option
from mergesearch.cli.training import texts_option


@click.command(
    "synthesize",
    short_help="Have a language model write negatives, queries, prompts.",
    epilog=examples(
        "mergesearch synthesize negatives --from ../data/nfcorpus --endpoint http://localhost:8000/v1 "
        "--llm llama-70b --out negatives.jsonl          # says what it would ask for",
        "mergesearch synthesize queries --from corpus.jsonl --most 500 --endpoint http://localhost:8000/v1 "
        "--llm llama-70b --out queries.jsonl --yes",
        "mergesearch synthesize prompts --from ../data/nfcorpus --count 10 --endpoint http://localhost:8000/v1 "
        "--llm llama-70b --out prompts.yaml --yes",
        "mergesearch synthesize prompts --from ../data/nfcorpus --study my.yaml --endpoint http://localhost:8000/v1 "
        "--llm llama-70b --out better.yaml --yes          # having seen what my.yaml scored with its prompts",
    ),
)
@click.argument("kind", type=click.Choice(["negatives", "queries", "prompts"]))
@texts_option(
    "--from",
    "origin",
    help="Pairs as for train-expert (negatives, prompts), or documents as for adapt (queries).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="A .jsonl file for train-expert --pairs; of prompts a .yaml file.",
)
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
@click.option("--count", type=click.IntRange(1), default=8, show_default=True, help="Prompts: how many.")
@click.option(
    "--before", type=click.Choice(["query", "document"]), default="query", show_default=True, help="Prompts: of what."
)
@click.option(
    "--first", multiple=True, metavar="TEXT", help="Prompts: by hand, first in the list; by default none at all."
)
@click.option(
    "--form", default="{} ", show_default=True, help="Prompts: what is made of a proposal; \\n is a new line."
)
@click.option(
    "--study",
    "study_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Prompts: a study that searched some, which the model is shown with their scores.",
)
@click.option("--keep", type=click.IntRange(0), default=3, show_default=True, help="Prompts: the best of the study's.")
@storage_option
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
    count: int,
    before: str,
    first: tuple[str, ...],
    form: str,
    study_file: Path | None,
    keep: int,
    storage: str | None,
    **endpoint: Any,
) -> None:
    """Have a language model write hard negatives for pairs, queries for documents, or prompts for a study to search.

    Answers are kept as they come: the same command goes on, and asks for nothing twice.
    """
    from mergesearch.cli.progress import phase_bar
    from mergesearch.training.endpoint import Endpoint, cost
    from mergesearch.training.proposals import Proposals, plan_prompts, propose
    from mergesearch.training.synthesis import Synthesis, plan_negatives, plan_queries, synthesize

    asked = Endpoint(**endpoint)
    plan: Synthesis | Proposals
    if kind == "prompts":
        scored = {} if study_file is None else _scored(study_file, storage, before)
        best = sorted(scored, key=lambda text: -scored[text])[:keep]
        listed = [*first, *list(scored)[:1], *best] or [""]
        form = form.replace("\\n", "\n")
        plan = plan_prompts(
            origin, kind=before, split=split, count=count, first=listed, scored=[*scored.items()], form=form, seed=seed
        )
    elif kind == "negatives":
        plan = plan_negatives(origin, split=split, most=most, seed=seed)
    else:
        plan = plan_queries(origin, most=most, seed=seed)
    needed = cost(asked, plan.prompts)
    click.echo(needed.describe(price_in, price_out))
    if needed.missing and not yes:
        click.echo("nothing was asked; add --yes to go on")
        return
    with phase_bar("asking") as progress:
        if isinstance(plan, Proposals):
            had, new = propose(plan, asked, out, progress)
            click.echo(f"{out}: {len(new):,} prompts were proposed, {len(had):,} stand before them")
            for text in new:
                click.echo(f"  {json.dumps(text, ensure_ascii=False)}")
            return
        written, empty = synthesize(plan, asked, out, progress)
    click.echo(f"{out}: {written:,} records" + (f", {empty:,} left out for empty answers" if empty else ""))


def _scored(study_file: Path, storage: str | None, kind: str) -> dict[str, float]:
    """The prompts of a study and the best score of each, the first of its list first."""
    from mergesearch.results.prompts import prompt_scores

    with open_existing(study_file, storage) as store:
        return prompt_scores(study_file, store, kind)
